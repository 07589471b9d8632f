"""The newest point of each guest, and the last that was verified, of a vault with 10 000 points.

Of most points only the time of the directory is looked up; one or two manifests of each guest are
read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import DOMAIN_XML
from zvmsnap.points.point import RestorePoint, in_order
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.watch.facts import PointFacts

# Of so many that were published last ZFS has the order.
_AMONG = 2


def of_all(vault_dir: Path) -> dict[str, PointFacts]:
    """By the UUID of the guest; by the directory's name where no newest point can be read.

    Raises OSError.
    """
    found: dict[str, PointFacts] = {}
    for folder in _folders(vault_dir):
        own = _of(folder)
        if own is None:
            continue
        key = own.newest.uuid if own.newest else folder.name
        # Points under an older name of a guest.
        known = found.get(key)
        found[key] = own if known is None else _merged(known, own)
    return found


def _folders(vault_dir: Path) -> Iterator[Path]:
    try:
        with os.scandir(vault_dir) as listed:
            entries = [each for each in listed if not each.name.startswith(".")]
    except FileNotFoundError:
        return
    for entry in sorted(entries, key=lambda each: each.name):
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _of(folder: Path) -> PointFacts | None:
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    if not names:
        return None
    changed = _latest((_time_s(f"{folder}/{name}"), name) for name in names)
    last = [vault.entry_in(folder / name) for name in _published_last(folder, changed)]
    readable = in_order(point for point in last if isinstance(point, RestorePoint))
    damaged = last[-1].why if isinstance(last[-1], DamagedPoint) else ""
    result, name = _verified(folder, changed)
    newest = readable[-1] if readable else None
    return PointFacts(
        domain=newest.manifest.domain if newest else folder.name,
        count=len(names),
        newest=newest.manifest if newest else None,
        directory=newest.directory if newest else folder,
        damaged=damaged,
        verified=result,
        verified_name=name,
    )


# A directory is no older than what was put into it. So of most, nothing is looked up: `changed` has
# their times, the latest first.


def _published_last(folder: Path, changed: Sequence[tuple[float, str]]) -> list[str]:
    """The points that were published last, in that order.

    By their definitions, which nobody changes later.
    """
    last: list[tuple[float, str]] = []
    for changed_s, name in changed:
        if len(last) == _AMONG and last[-1][0] >= changed_s:
            break
        published_s = _time_s(f"{folder}/{name}/{DOMAIN_XML}")
        last = _latest([*last, (published_s, name)])[:_AMONG]
    return [name for _, name in last[::-1]]


def _verified(
    folder: Path, changed: Sequence[tuple[float, str]]
) -> tuple[verify_result.VerifyResult | None, str]:
    """The last verification of all these points, and the name of its point."""
    last = (0.0, "")
    for changed_s, name in changed:
        if last[0] >= changed_s:
            break
        for result in (verify_result.READ, verify_result.BOOTED):
            path = f"{folder}/{name}/{result}"
            # Most have none: to ask so is cheaper than a stat that fails.
            if os.access(path, os.F_OK):
                last = max(last, (_time_s(path), name))
    point = vault.entry_in(folder / last[1]) if last[1] else None
    if not isinstance(point, RestorePoint):
        return None, ""
    return verify_result.read(point), point.name


def _latest(timed: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """Names by their times in seconds, the latest first."""
    return sorted(timed, reverse=True)


def _time_s(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _merged(one: PointFacts, other: PointFacts) -> PointFacts:
    """The points of a guest under two of its names."""
    newer = max(one, other, key=lambda each: _time(each.newest.created if each.newest else ""))
    checked = max(one, other, key=_checked)
    return replace(
        newer,
        count=one.count + other.count,
        verified=checked.verified,
        verified_name=checked.verified_name,
    )


def _checked(facts: PointFacts) -> datetime:
    return _time(facts.verified.checked if facts.verified else "")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)
