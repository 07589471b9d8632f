"""Brings a running guest from overlays back to its bases: commit, pivot, prove it.

libvirt's live and persistent XML are the only witnesses of where a disk is: a block job that has
vanished proves nothing, nor does a successful pivot.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from zvmsnap import domainxml
from zvmsnap.errors import BlockJobNotReady, CommitFailed, LibvirtFailed

_LOOK_EVERY_S = 0.2
_PIVOT_AGAIN_S = 0.05
_ACTIVE_COMMIT = "active-commit"


class Committed(Protocol):
    """What is needed of a guest."""

    name: str

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def is_active(self) -> bool: ...
    def is_persistent(self) -> bool: ...
    def block_commit(self, target: str) -> None: ...
    def block_job_pivot(self, target: str) -> None: ...
    def block_job_events(self) -> AbstractContextManager[threading.Event]: ...


def to_base(
    guest: Committed,
    overlays: Mapping[str, tuple[str, str]],
    timeout_s: float,
    pivoted: Callable[[str], None] = lambda _target: None,
) -> None:
    """Bring every disk in `overlays` (target to overlay and base) back to its base.

    May be called again after any interruption: running jobs are taken over, disks that are on
    their base already are left alone. `pivoted` is told each target whose overlay has become
    worthless, since libvirt has merged and left it here and now. Raises CommitFailed with what is
    still on an overlay; the overlay files are not touched.
    """
    deadline_s = time.monotonic() + timeout_s
    disks = _disks(guest)
    pending = [
        target for target, (overlay, _) in overlays.items() if _source(disks, target) == overlay
    ]
    if pending and not guest.is_active():
        raise CommitFailed(
            f"{guest.name}: is off while its newest writes are in "
            f"{', '.join(overlays[target][0] for target in pending)}: keep these files; "
            "start the guest and run the hook again"
        )
    # All commits begin before the first pivot: with a pivot libvirt before 12.1 rewrites the
    # guest's AppArmor profile, which from then on denies QEMU to write to the other bases.
    failures = {}
    with guest.block_job_events() as changed:
        for target in list(pending):
            try:
                _start(guest, disks[target], overlays[target][1])
            except (LibvirtFailed, CommitFailed) as error:
                failures[target] = str(error)
                pending.remove(target)
        for target in pending:
            try:
                if _await_ready(guest, target, overlays[target][0], changed, deadline_s):
                    _pivot(guest, target, deadline_s)
                    pivoted(target)
            except (LibvirtFailed, CommitFailed) as error:
                failures[target] = str(error)
    _prove(guest, overlays, failures)


def _start(guest: Committed, disk: domainxml.Disk, base: str) -> None:
    if not disk.chain or disk.chain[0] != base:
        below = disk.chain[0] if disk.chain else "nothing"
        raise CommitFailed(
            f"{guest.name}: {disk.target}: below its overlay lies {below}, not {base}"
        )
    if disk.mirror and disk.mirror_job != _ACTIVE_COMMIT:
        raise CommitFailed(
            f"{guest.name}: {disk.target}: a block job of another kind ({disk.mirror_job}) is on "
            "it; end that first"
        )
    if not disk.mirror:
        guest.block_commit(disk.target)


def _await_ready(
    guest: Committed, target: str, overlay: str, changed: threading.Event, deadline_s: float
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


def _pivot(guest: Committed, target: str, deadline_s: float) -> None:
    while True:
        try:
            return guest.block_job_pivot(target)
        except BlockJobNotReady:
            # libvirt may say so even after `ready`, until QEMU has drained the last writes.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_PIVOT_AGAIN_S)


def _prove(
    guest: Committed, overlays: Mapping[str, tuple[str, str]], failures: Mapping[str, str]
) -> None:
    live = _disks(guest)
    persistent = _disks(guest, persistent=True) if guest.is_persistent() else {}
    wrong = list(failures.values())
    for target, (overlay, base) in overlays.items():
        if _source(live, target) == overlay:
            wrong.append(f"{target} is still on {overlay}")
        elif _source(live, target) not in (base, None):
            wrong.append(f"{target} is on {_source(live, target)}, not on {base}")
        elif target not in live and os.path.exists(overlay):
            wrong.append(
                f"{target} was taken away from the guest with its newest writes in {overlay}: "
                "bring them into its base with `qemu-img commit`, then remove that file"
            )
        if _source(persistent, target) == overlay:
            wrong.append(f"the persistent definition still names {overlay}")
    if wrong:
        raise CommitFailed(f"{guest.name}: not back on its base: {'; '.join(wrong)}")


def _disks(guest: Committed, *, persistent: bool = False) -> dict[str, domainxml.Disk]:
    return {disk.target: disk for disk in domainxml.parse(guest.xml(persistent=persistent)).disks}


def _source(disks: Mapping[str, domainxml.Disk], target: str) -> str | None:
    return disks[target].source if target in disks else None
