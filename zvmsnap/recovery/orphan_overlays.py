"""What interrupted runs have left in staging and vault; above all overlays that no guest uses."""

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


def clear_leftovers(
    config: Config, guests: Iterable[Guest], report: Report, *, dry_run: bool
) -> None:
    """Remove the leftovers that hold nothing; add them to the report, and the kept ones, too.

    It is called after all guests were recovered: an overlay that a guest still uses was reported
    with that guest.
    """
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
        in_use = _images_of_all(guests)
    except ZvmsnapError as error:
        report.problems.extend(f"{overlay}: kept; {error}" for overlay in left.overlays)
        return
    for overlay in left.overlays:
        if str(overlay) not in in_use:
            _clear_overlay(overlay, report, dry_run=dry_run)


def _images_of_all(guests: Iterable[Guest]) -> set[str]:
    images: set[str] = set()
    for guest in guests:
        with suppress(DomainGone):
            images |= images_of(guest)
    return images


def _clear_overlay(overlay: Path, report: Report, *, dry_run: bool) -> None:
    """Remove an overlay that no guest uses, if nothing was ever written to it."""
    try:
        if not qemu_img.holds_nothing(str(overlay)):
            report.problems.append(_why_kept(overlay))
            return
        report.removed.append(str(overlay))
        if dry_run:
            return
        overlay.unlink()
        directory = StagingDir(overlay.parent)
        if not directory.overlays():
            directory.remove()
    except (ZvmsnapError, OSError, IndexError) as error:
        report.problems.append(f"{overlay}: kept; {error}")


def _why_kept(overlay: Path) -> str:
    base = qemu_img.chain(str(overlay))[1].path
    return (
        f"{overlay}: kept; no guest uses it, but it holds writes that {base} may lack. If "
        f"that disk was not used since: qemu-img commit {overlay}. Then remove it"
    )
