"""Merges the chains of a guest, on or off, and undoes what was interrupted.

| the guest | commit                                       | pull                               |
|-----------|----------------------------------------------|------------------------------------|
| runs      | QEMU commits, libvirt pivots to the last     | QEMU pulls into the first          |
|           | image (disks/live_commit)                    | (live_pull)                        |
| is off    | qemu-img commits each into the one below,    | qemu-img copies into the first,    |
|           | and the definition names the last            | whose header changes last          |

A reader of the first image sees the same content at any instant of all four, so nothing must be
undone but a job of QEMU that goes on: `zvmsnap recover`, and a failure, end it. What was copied by
then is not lost: the same command again finds it done.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from zvmsnap.bulk import progress
from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, FlattenImpossible, LibvirtFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs, live_commit, offline_commit, qemu_img
from zvmsnap.flatten import live_pull
from zvmsnap.flatten.method import Method
from zvmsnap.flatten.plan import FlattenPlan, plan
from zvmsnap.flatten.work import Flattening, Flattenings
from zvmsnap.journal import other_versions
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_JOBS = {Method.COMMIT: jobs.ACTIVE_COMMIT, Method.PULL: live_pull.KIND}


def flatten(config: Config, host: Host, guest: Guest, planned: FlattenPlan) -> None:
    """Do what was planned, under the guest's lock; if the plan has changed meanwhile, refuse.

    Raises FlattenImpossible with nothing touched; FlattenFailed, CommitFailed, LibvirtFailed and
    the like with the guest on its chain, or a part of the disks done.
    """
    intent = f"flatten {guest.name}"
    with lock(config.locks_dir, guest.uuid, intent, config.limits.lock_timeout_s):
        _refuse_work(config, guest)
        undo(config, guest)
        jobs.wait_idle(guest, config.limits.busy_timeout_s)
        if plan(host, guest, planned.method, planned.chains) != planned:
            raise FlattenImpossible(f"{guest.name}: its images changed meanwhile; try again")
        work = Flattening(
            domain=guest.name,
            uuid=guest.uuid,
            owner=Process.of(os.getpid()),
            method=planned.method,
            targets=tuple(planned.chains),
        )
        Flattenings(config.journal_dir).write(work)
        try:
            _do(guest, planned)
        finally:
            undo(config, guest)


def undo(config: Config, guest: Guest) -> bool:
    """End a job that an interrupted flattening has left, if it has; was there one?

    The guest's lock is held. Raises LibvirtFailed.
    """
    works = Flattenings(config.journal_dir)
    work = works.read(guest.uuid)
    if work is None:
        return False
    with suppress(DomainGone):
        for target in work.targets if guest.is_active() else ():
            _end_job(guest, target, work.method)
    works.close(guest.uuid)
    return True


def _end_job(guest: Guest, target: str, method: Method) -> None:
    job = guest.block_job(target)
    if job and job.kind == _JOBS[method]:
        try:
            guest.block_job_abort(target)
        except LibvirtFailed:
            if guest.block_job(target):  # else it has just ended
                raise


def _refuse_work(config: Config, guest: Guest) -> None:
    other_versions.refuse(config.journal_dir, guest.uuid)
    entry = Journal(config.journal_dir).read(guest.uuid)
    operation = Operations(config.journal_dir).read(guest.uuid)
    if entry or operation:
        what = f"a {operation.kind}" if operation else "a snapshot run"
        raise FlattenImpossible(
            f"{guest.name}: {what} is under way, or was interrupted: zvmsnap recover"
        )


def _do(guest: Guest, planned: FlattenPlan) -> None:
    run = {
        (Method.COMMIT, True): _commit_live,
        (Method.COMMIT, False): _commit_off,
        (Method.PULL, True): _pull_live,
        (Method.PULL, False): _pull_off,
    }[planned.method, guest.is_active()]
    run(guest, planned)


def _commit_live(guest: Guest, planned: FlattenPlan) -> None:
    with _told(guest, planned):
        live_commit.to_base(guest, planned.chains, math.inf)


def _commit_off(guest: Guest, planned: FlattenPlan) -> None:
    offline_commit.to_base(guest, planned.chains, lambda _target, do: do(), _at_once)


def _pull_live(guest: Guest, planned: FlattenPlan) -> None:
    with _told(guest, planned):
        live_pull.pull(guest, planned.chains)


@contextmanager
def _told(guest: Guest, planned: FlattenPlan) -> Iterator[None]:
    """Show how far the jobs of QEMU are."""
    with guest.apart() as beside, progress.told(lambda: how_far(beside, planned)):
        yield


def how_far(guest: Guest, planned: FlattenPlan) -> str:
    """How far the job on each disk is, in one line."""
    told = []
    for target in planned.chains:
        with suppress(LibvirtFailed):
            if job := guest.block_job(target):
                percent = 100 * job.done_bytes // max(1, job.total_bytes)
                told.append(f"{target} {percent} % of {job.total_bytes >> 20} MiB")
    return f"{guest.name}: {planned.method}: {', '.join(told) or 'at its end'}"


def _pull_off(guest: Guest, planned: FlattenPlan) -> None:
    for chain in planned.chains.values():
        qemu_img.detach(chain.top)
    # A definition may itself say what is below a disk.
    sources = {
        disk.target: (_kind(disk), disk.source, disk.format)
        for disk in domain_xml.parse(guest.xml(persistent=True)).disks
        if disk.target in planned.chains
    }
    offline_commit.redefine_sources(guest, sources)


def _kind(disk: domain_xml.Disk) -> str:
    return "block" if stat.S_ISBLK(os.stat(disk.source).st_mode) else "file"


def _at_once(name: str, do: Callable[[], None]) -> None:
    log.plain().info("%s", name)
    do()
