"""Brings a running guest from its overlays to its bases: commit, pivot, prove.

Only libvirt's live and persistent XML prove where a disk is. A block job that has vanished proves
nothing, nor does a successful pivot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from zvmsnap.common import log
from zvmsnap.common.errors import BlockJobNotReady, CommitFailed, LibvirtFailed
from zvmsnap.common.waiting import now_s, sleep, wait
from zvmsnap.disks import apparmor
from zvmsnap.disks.jobs import ACTIVE_COMMIT
from zvmsnap.disks.overlay_chain import DefinedGuest, OverlayChain
from zvmsnap.virt import domain_xml

_LOOK_EVERY_S = 0.2
_PIVOT_AGAIN_S = 0.05
_ASK_EVERY_S = 15.0
_DENIED = "Permission denied"

# Called with a target and what takes the disk off its overlays. At that instant the base has all
# that was written to them, so the overlays are worthless once the XML names the base.
ReleaseDisk = Callable[[str, Callable[[], None]], None]

# Called with the guest's UUID and bases, as apparmor.allow_writes.
AllowWrites = Callable[[str, Iterable[str]], bool]


class CommittableGuest(DefinedGuest, Protocol):
    """A guest whose disks can be committed while it runs."""

    name: str
    uuid: str

    def check_answers(self) -> None: ...
    def block_commit(self, target: str, base: str) -> None: ...
    def block_job_pivot(self, target: str) -> None: ...
    def block_job_events(self) -> AbstractContextManager[threading.Event]: ...


def to_base(
    guest: CommittableGuest,
    chains: Mapping[str, OverlayChain],
    timeout_s: float,
    release_disk: ReleaseDisk = lambda _target, do: do(),
    allow: AllowWrites = apparmor.allow_writes,
) -> None:
    """Bring every disk of `chains`, which are those of its live XML, to its base.

    May be called again after any interruption: running jobs are taken over. Raises CommitFailed
    with all that is still on an overlay; the overlay files are not touched.
    """
    check_possible(guest.name, chains)
    deadline_s = now_s() + timeout_s
    failures: dict[str, str] = {}
    # All commits begin before the first pivot: with a pivot libvirt before 12.1 rewrites the
    # guest's AppArmor profile, which from that on denies QEMU to write to the other bases.
    with guest.block_job_events() as changed:
        for target in _start_all(guest, chains, failures, allow):
            try:
                if _await_ready(guest, target, chains[target].top, changed, deadline_s):
                    release_disk(target, _pivot(guest, target, deadline_s))
            except (LibvirtFailed, CommitFailed) as error:
                failures[target] = str(error)
    prove(guest, chains, failures)


def check_possible(name: str, chains: Mapping[str, OverlayChain]) -> None:
    """Raises CommitFailed with the problems of all chains, if there is one.

    All disks or none: a commit of one disk may take from an administrator the means to mend
    another one.
    """
    problems = [f"{chain.target}: {chain.problem}" for chain in chains.values() if chain.problem]
    if problems:
        raise CommitFailed(f"{name}: not back on its base: {'; '.join(problems)}")


def _start_all(
    guest: CommittableGuest,
    chains: Mapping[str, OverlayChain],
    failures: dict[str, str],
    allow: AllowWrites,
) -> list[str]:
    """Start a commit of each disk; returns the targets whose commit runs."""
    started = _start_each(guest, chains, failures)
    denied = [target for target, why in failures.items() if _DENIED in why]
    if denied and _allowed(guest, [chains[target].base for target in denied], allow):
        log.plain().warning(
            "%s: its AppArmor profile denied it its own disks %s: allowed for this commit",
            guest.name,
            ", ".join(chains[target].base for target in denied),
        )
        for target in denied:
            del failures[target]
        started += _start_each(guest, {target: chains[target] for target in denied}, failures)
    return started


def _allowed(guest: CommittableGuest, bases: list[str], allow: AllowWrites) -> bool:
    try:
        return allow(guest.uuid, bases)
    except OSError as error:
        # The commits of the other disks have begun, and go on.
        log.plain().warning("%s: its AppArmor profile cannot be changed: %s", guest.name, error)
        return False


def _start_each(
    guest: CommittableGuest, chains: Mapping[str, OverlayChain], failures: dict[str, str]
) -> list[str]:
    disks = _disks(guest)
    started = []
    for target, chain in chains.items():
        disk = disks.get(target)
        if disk is None or disk.source != chain.top:
            continue
        try:
            if disk.mirror and disk.mirror_job != ACTIVE_COMMIT:
                raise CommitFailed(
                    f"{guest.name}: {target}: a block job of another kind ({disk.mirror_job}) is "
                    "on it; end that first"
                )
            if not disk.mirror:
                guest.block_commit(target, chain.base)
            started.append(target)
        except (LibvirtFailed, CommitFailed) as error:
            failures[target] = str(error)
    return started


def _await_ready(
    guest: CommittableGuest, target: str, overlay: str, changed: threading.Event, deadline_s: float
) -> bool:
    """Wait until a disk can be pivoted; False if it is off its overlay, or detached, already.

    Raises NoAnswer if QEMU hangs: libvirt would show the commit as under way for ever.
    """
    asked_s = now_s()
    while True:
        changed.clear()
        disk = _disks(guest).get(target)
        if disk is None or disk.source != overlay:
            return False
        if disk.mirror == "yes":
            return True
        if not disk.mirror:
            raise CommitFailed(f"{guest.name}: {target}: its commit ended without being ready")
        if now_s() > deadline_s:
            raise CommitFailed(
                f"{guest.name}: {target}: its commit is not ready within the deadline"
            )
        if now_s() - asked_s > _ASK_EVERY_S:
            guest.check_answers()
            asked_s = now_s()
        wait(changed, _LOOK_EVERY_S)


def _pivot(guest: CommittableGuest, target: str, deadline_s: float) -> Callable[[], None]:
    def pivot() -> None:
        while True:
            try:
                return guest.block_job_pivot(target)
            except BlockJobNotReady:
                # libvirt may say so even after `ready`, until QEMU has drained the last writes.
                if now_s() > deadline_s:
                    raise
                sleep(_PIVOT_AGAIN_S)

    return pivot


def prove(
    guest: CommittableGuest,
    chains: Mapping[str, OverlayChain],
    failures: Mapping[str, str] | None = None,
) -> None:
    """Raises CommitFailed, unless both definitions name the base of every chain.

    The message begins with `failures`. A disk that the guest does not have any more is no failure.
    """
    live = _disks(guest)
    persistent = _disks(guest, persistent=True) if guest.is_persistent() else {}
    wrong = list((failures or {}).values())
    for target, chain in chains.items():
        source = _source(live, target)
        if source in chain.overlays:
            wrong.append(f"{target} is still on {source}")
        elif chain.base and source not in (chain.base, None):
            wrong.append(f"{target} is on {source}, not on {chain.base}")
        if _source(persistent, target) in chain.overlays:
            wrong.append(f"the persistent definition still names {_source(persistent, target)}")
    if wrong:
        raise CommitFailed(f"{guest.name}: not back on its base: {'; '.join(wrong)}")


def _disks(guest: DefinedGuest, *, persistent: bool = False) -> dict[str, domain_xml.Disk]:
    return {disk.target: disk for disk in domain_xml.parse(guest.xml(persistent=persistent)).disks}


def _source(disks: Mapping[str, domain_xml.Disk], target: str) -> str | None:
    return disks[target].source if target in disks else None
