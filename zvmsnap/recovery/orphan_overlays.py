"""Overlays that no guest uses any more."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from zvmsnap.common.errors import DomainGone, VaultMissing, ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.disks import qemu_img
from zvmsnap.disks.overlay_chain import images_of
from zvmsnap.disks.staging import StagingDir
from zvmsnap.points import vault
from zvmsnap.recovery.report import Report
from zvmsnap.retention import leftovers
from zvmsnap.virt.guest import Guest


def clear(config: Config, guests: Iterable[Guest], report: Report, *, dry_run: bool) -> None:
    """Judge each overlay that no guest uses."""
    try:
        vault.check(config)
    except VaultMissing as error:
        report.problems.append(str(error))
        return
    left = leftovers.find(config)
    report.removed.extend(str(path) for path in left.paths)
    if not dry_run:
        left.remove()
    if not left.overlays:
        return
    try:
        in_use = _named_by_any(guests)
    except ZvmsnapError as error:
        report.problems.extend(f"{overlay}: kept; {error}" for overlay in left.overlays)
        return
    for overlay in left.overlays:
        # One that is still named is told of with its guest.
        if str(overlay) not in in_use:
            _judge_overlay(overlay, report, dry_run=dry_run)


def _named_by_any(guests: Iterable[Guest]) -> set[str]:
    found: set[str] = set()
    for guest in guests:
        with suppress(DomainGone):
            found |= images_of(guest)
    return found


def _judge_overlay(overlay: Path, report: Report, *, dry_run: bool) -> None:
    """An overlay that no journal knows, after all guests that name one were recovered."""
    try:
        if qemu_img.holds_nothing(str(overlay)):
            report.removed.append(str(overlay))
            if not dry_run:
                overlay.unlink()
                directory = StagingDir(overlay.parent)
                if not directory.overlays():
                    directory.remove()
            return
        base = qemu_img.chain(str(overlay))[1].path
        report.problems.append(
            f"{overlay}: kept; no guest uses it, but it holds writes that {base} may lack. If "
            f"that disk was not used since: qemu-img commit {overlay}. Then remove it"
        )
    except (ZvmsnapError, OSError, IndexError) as error:
        report.problems.append(f"{overlay}: kept; {error}")
