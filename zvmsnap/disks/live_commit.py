"""Brings a running guest from overlays back to its bases: commit, pivot, prove it.

libvirt's live and persistent XML are the only witnesses of where a disk is: a block job that has
vanished proves nothing, nor does a successful pivot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from zvmsnap.common import log
from zvmsnap.common.errors import BlockJobNotReady, CommitFailed, LibvirtFailed
from zvmsnap.disks import apparmor
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.virt import domain_xml

_LOOK_EVERY_S = 0.2
_PIVOT_AGAIN_S = 0.05
_ACTIVE_COMMIT = "active-commit"
_DENIED = "Permission denied"

# Called with a target and what leaves its overlay: at that moment all that was written to the
# overlay is in the base, so that once the XML names the base the overlay is worthless.
Leaving = Callable[[str, Callable[[], None]], None]


class CommittableGuest(Protocol):
    """What is needed of a guest."""

    name: str
    uuid: str

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def is_persistent(self) -> bool: ...
    def block_commit(self, target: str, base: str) -> None: ...
    def block_job_pivot(self, target: str) -> None: ...
    def block_job_events(self) -> AbstractContextManager[threading.Event]: ...


def to_base(
    guest: CommittableGuest,
    stacks: Mapping[str, OverlayChain],
    timeout_s: float,
    leaving: Leaving = lambda _target, leave: leave(),
    allow: Callable[[str, Iterable[str]], bool] = apparmor.allow_writes,
) -> None:
    """Bring every disk in `stacks`, as its live XML shows them, to its base.

    May be called again after any interruption: running jobs are taken over. Raises CommitFailed
    with what is still on an overlay; the overlay files are not touched.
    """
    check_possible(guest.name, stacks)
    deadline_s = time.monotonic() + timeout_s
    failures: dict[str, str] = {}
    # All commits begin before the first pivot: with a pivot libvirt before 12.1 rewrites the
    # guest's AppArmor profile, which from then on denies QEMU to write to the other bases.
    with guest.block_job_events() as changed:
        for target in _start_all(guest, stacks, failures, allow):
            try:
                if _await_ready(guest, target, stacks[target].top, changed, deadline_s):
                    leaving(target, _pivoting(guest, target, deadline_s))
            except (LibvirtFailed, CommitFailed) as error:
                failures[target] = str(error)
    prove(guest, stacks, failures)


def check_possible(name: str, stacks: Mapping[str, OverlayChain]) -> None:
    """All disks or none: leaving one may take from its owner the means to free another.

    Raises CommitFailed with the problem of each stack that has one.
    """
    problems = [f"{stack.target}: {stack.problem}" for stack in stacks.values() if stack.problem]
    if problems:
        raise CommitFailed(f"{name}: not back on its base: {'; '.join(problems)}")


def _start_all(
    guest: CommittableGuest,
    stacks: Mapping[str, OverlayChain],
    failures: dict[str, str],
    allow: Callable[[str, Iterable[str]], bool],
) -> list[str]:
    """Start a commit of each disk; returns the targets whose commit runs."""
    started = _start_each(guest, stacks, failures)
    denied = [target for target, why in failures.items() if _DENIED in why]
    if denied and _allowed(guest, [stacks[target].base for target in denied], allow):
        log.plain().warning(
            "%s: its AppArmor profile denied it its own disks %s: allowed for this commit",
            guest.name,
            ", ".join(stacks[target].base for target in denied),
        )
        again = {target: stacks[target] for target in denied}
        for target in denied:
            del failures[target]
        started += _start_each(guest, again, failures)
    return started


def _allowed(
    guest: CommittableGuest, bases: list[str], allow: Callable[[str, Iterable[str]], bool]
) -> bool:
    try:
        return allow(guest.uuid, bases)
    except OSError as error:
        # The other disks have begun to leave their overlays, and go on.
        log.plain().warning("%s: its AppArmor profile cannot be changed: %s", guest.name, error)
        return False


def _start_each(
    guest: CommittableGuest, stacks: Mapping[str, OverlayChain], failures: dict[str, str]
) -> list[str]:
    disks = _disks(guest)
    started = []
    for target, stack in stacks.items():
        disk = disks.get(target)
        if disk is None or disk.source != stack.top:
            continue
        try:
            if disk.mirror and disk.mirror_job != _ACTIVE_COMMIT:
                raise CommitFailed(
                    f"{guest.name}: {target}: a block job of another kind ({disk.mirror_job}) is "
                    "on it; end that first"
                )
            if not disk.mirror:
                guest.block_commit(target, stack.base)
            started.append(target)
        except (LibvirtFailed, CommitFailed) as error:
            failures[target] = str(error)
    return started


def _await_ready(
    guest: CommittableGuest, target: str, overlay: str, changed: threading.Event, deadline_s: float
) -> bool:
    """True when the disk can be pivoted, False when it is off its overlay, or gone, already."""
    while True:
        changed.clear()
        disk = _disks(guest).get(target)
        if disk is None or disk.source != overlay:
            return False
        if disk.mirror == "yes":
            return True
        if not disk.mirror:
            raise CommitFailed(f"{guest.name}: {target}: its commit ended without being ready")
        if time.monotonic() > deadline_s:
            raise CommitFailed(
                f"{guest.name}: {target}: its commit is not ready within the deadline"
            )
        changed.wait(_LOOK_EVERY_S)


def _pivoting(guest: CommittableGuest, target: str, deadline_s: float) -> Callable[[], None]:
    def pivot() -> None:
        while True:
            try:
                return guest.block_job_pivot(target)
            except BlockJobNotReady:
                # libvirt may say so even after `ready`, until QEMU has drained the last writes.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_PIVOT_AGAIN_S)

    return pivot


def prove(
    guest: CommittableGuest,
    stacks: Mapping[str, OverlayChain],
    failures: Mapping[str, str] | None = None,
) -> None:
    """Both definitions name the base of every stack. Raises CommitFailed, saying all that is not.

    A disk that the guest does not have any more is none of its own.
    """
    live = _disks(guest)
    persistent = _disks(guest, persistent=True) if guest.is_persistent() else {}
    wrong = list((failures or {}).values())
    for target, stack in stacks.items():
        source = _source(live, target)
        if source in stack.overlays:
            wrong.append(f"{target} is still on {source}")
        elif stack.base and source not in (stack.base, None):
            wrong.append(f"{target} is on {source}, not on {stack.base}")
        if _source(persistent, target) in stack.overlays:
            wrong.append(f"the persistent definition still names {_source(persistent, target)}")
    if wrong:
        raise CommitFailed(f"{guest.name}: not back on its base: {'; '.join(wrong)}")


def _disks(guest: CommittableGuest, *, persistent: bool = False) -> dict[str, domain_xml.Disk]:
    return {disk.target: disk for disk in domain_xml.parse(guest.xml(persistent=persistent)).disks}


def _source(disks: Mapping[str, domain_xml.Disk], target: str) -> str | None:
    return disks[target].source if target in disks else None
