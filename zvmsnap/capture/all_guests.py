"""pre: all guests of a moment, in parallel. Afterwards their disks are frozen, or they stand still.

What each guest gets is decided and done in `part`. Whatever takes long comes first, for all of
them, so that nobody stands still while another one's RAM is being written (see `Gate`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from zvmsnap.capture import eligibility
from zvmsnap.capture.one_guest import GuestCapture
from zvmsnap.capture.snapshot_run import PreexistingSnapshots, SnapshotRun
from zvmsnap.common import log
from zvmsnap.common.errors import Cancelled, DomainGone, HookEnvironmentInvalid, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.config.mode import ModeSet
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, staging
from zvmsnap.disks.staging import StagingSpace
from zvmsnap.finalize.after_snapshot import finish_interrupted
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.quiesce import watchdog
from zvmsnap.quiesce.barrier import FreezeBarrier
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs

_MIB = 1 << 20


def begin(
    call: HookCall,
    config: Config,
    owner: Process,
    takes_recursively: Mapping[str, bool],
    cancelled: threading.Event,
    post_within_s: float = math.inf,
) -> bool:
    """Take every concerned guest's part of the moment; True if all got what they should.

    `post_within_s`: while the owner lives it calls post, so soon; see callers.
    Raises StagingUnusable, ZfsFailed, HypervisorUnreachable before anything is touched, and
    Cancelled after everything was undone.
    """
    datasets = zfs.datasets()
    for target in call.datasets:
        if target not in datasets:
            raise HookEnvironmentInvalid(f"SANOID_TARGET {target!r}: there is no such dataset")
    snapshotted = eligibility.snapshotted_datasets(call.datasets, datasets, takes_recursively)
    covered = eligibility.without_excluded(snapshotted, datasets, call.types)

    def demanded(of: Iterable[str]) -> ModeSet:
        return eligibility.modes_for(of, datasets, call.types, config.default_modes)

    return begin_on(covered, snapshotted, demanded, call, config, owner, cancelled, post_within_s)


def begin_on(
    covered: frozenset[str],
    snapshotted: frozenset[str],
    demanded: Callable[[Iterable[str]], ModeSet],
    call: HookCall,
    config: Config,
    owner: Process,
    cancelled: threading.Event,
    post_within_s: float = math.inf,
) -> bool:
    """As `begin`, of guests with disks on `covered`, when `snapshotted` will be snapshotted.

    `demanded` says of which level a point of a guest with disks on such datasets must be.
    """
    if not covered:
        return True
    table = mounts.read_table()
    with Host(config.uri) as hypervisor:
        moment = SnapshotRun(
            config,
            hypervisor,
            Journal(config.journal_dir),
            call,
            owner,
            covered,
            table,
            cancelled,
            demanded,
            post_within_s,
        )
        guests, complete = _concerned(moment)
        if not guests:
            log.plain().debug("%s: no guest has a disk there", ",".join(call.datasets))
            return complete
        # Only now, as datasets without guests need no staging at all.
        staging.check_usable(config.staging_dir, snapshotted, table)
        if post_within_s:
            watchdog.start_watchdog(owner, post_within_s)
        return _all_in_parallel(moment, guests) and complete


def _concerned(moment: SnapshotRun) -> tuple[dict[str, Guest], bool]:
    found = {}
    complete = True
    for guest in moment.host.guests():
        try:
            if eligibility.judge_guest(
                location.locate_disks(moment.host, guest, moment.mounts), moment.covered
            ):
                found[guest.uuid] = guest
        except DomainGone:
            continue
        except ZvmsnapError as error:
            moment.about(guest).error("not looked at: %s", error)
            complete = False
    return found, complete


def _all_in_parallel(moment: SnapshotRun, guests: Mapping[str, Guest]) -> bool:
    former = _former(moment)
    room = StagingSpace(moment.config.staging_dir, moment.config.limits.overlay_room_mib * _MIB)
    taking = threading.Lock()

    def reserve(uuid: str, ram_bytes: int) -> None:
        with taking:
            room.take(uuid, ram_bytes)

    gate = FreezeBarrier(guests)
    # A thread for each guest, as they wait for each other; the gate bounds what works at once.
    with ThreadPoolExecutor(len(guests)) as pool:
        futures: dict[Guest, Future[bool]] = {
            guest: pool.submit(GuestCapture(moment, guest, former, reserve, gate).take)
            for guest in guests.values()
        }
    complete = True
    for guest, future in futures.items():
        error = future.exception()
        if error is None:
            complete = future.result() and complete
        else:
            complete = False
            moment.about(guest).error("no point: %s", error, exc_info=_unexpected(error))
    if moment.cancelled.is_set():
        _put_back(moment, guests)
        raise Cancelled("interrupted: no guest has a part in this moment")
    return complete


def _unexpected(error: BaseException) -> BaseException | None:
    return None if isinstance(error, ZvmsnapError | OSError) else error


def _put_back(moment: SnapshotRun, guests: Mapping[str, Guest]) -> None:
    """After an interruption nobody may call post: guests that were done are put back too."""
    for uuid, guest in guests.items():
        entry = moment.journal.read(uuid)
        if entry is None or entry.owner != moment.owner:
            continue
        try:
            with lock(
                moment.config.locks_dir,
                uuid,
                f"put back {guest.name}",
                moment.config.limits.lock_timeout_s,
            ):
                now = moment.journal.read(uuid)
                if now and now.capture == entry.capture:
                    finish_interrupted(moment.config, moment.host, guest, now)
        except (ZvmsnapError, OSError) as error:
            moment.about(guest).error("not put back, the next hook tries again: %s", error)


def _former(moment: SnapshotRun) -> PreexistingSnapshots:
    if moment.call.unnamed:
        return PreexistingSnapshots((), snapshot_match.newest_txg(moment.covered))
    wanted = [
        f"{dataset}@{spelling}"
        for dataset in moment.covered
        for name in moment.call.names
        for spelling in spellings(name)
    ]
    return PreexistingSnapshots(
        tuple(snapshot.guid for snapshot in zfs.snapshots(wanted).present.values())
    )
