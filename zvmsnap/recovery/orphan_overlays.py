"""What interrupted runs have left in staging and vault; above all overlays that no guest uses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zvmsnap.common.errors import DomainGone, VaultMissing, ZvmsnapError
from zvmsnap.common.process import writers_of
from zvmsnap.config import capture_name
from zvmsnap.config.settings import Config
from zvmsnap.disks.overlay_chain import images_of
from zvmsnap.disks.staging import StagingDir
from zvmsnap.disks.unused_overlay import Content, content_of, why_kept
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
    in_use, unreadable = _images_of_all(guests)
    for overlay in left.overlays:
        if why := unreadable.get(capture_name.uuid_of(overlay.parent.name) or ""):
            report.problems.append(f"{overlay}: kept; {why}")
        elif str(overlay) not in in_use:
            _clear_overlay(overlay, report, dry_run=dry_run)


def _images_of_all(guests: Iterable[Guest]) -> tuple[set[str], dict[str, str]]:
    """All images in use; and, by UUID, why those of some guests are not known."""
    images: set[str] = set()
    unreadable: dict[str, str] = {}
    for guest in guests:
        try:
            images |= images_of(guest)
        except DomainGone:
            continue
        except ZvmsnapError as error:
            unreadable[guest.uuid] = str(error)
    return images, unreadable


def _clear_overlay(overlay: Path, report: Report, *, dry_run: bool) -> None:
    """Remove an overlay that no guest uses, if nothing was ever written to it."""
    try:
        if content_of(overlay) is not Content.NOTHING or writers_of(overlay):
            report.problems.append(why_kept(overlay))
            return
        report.removed.append(str(overlay))
        if dry_run:
            return
        overlay.unlink()
        directory = StagingDir(overlay.parent)
        if not directory.overlays():
            directory.remove()
    except (ZvmsnapError, OSError) as error:
        report.problems.append(f"{overlay}: kept; {error}")
