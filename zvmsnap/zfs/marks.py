"""Bookmarks and holds on many snapshots at once, through libzfs_core: all of a pool or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import GivenUp, ZfsFailed
from zvmsnap.common.waiting import Call


def bookmark(names: Mapping[str, str]) -> None:
    """Make bookmarks, `dataset#name`, of snapshots that exist. Raises ZfsFailed."""
    import libzfs_core
    from libzfs_core.exceptions import ZFSError

    for pool in _by_pool(names):
        wanted = {name.encode(): names[name].encode() for name in pool}
        try:
            libzfs_core.lzc_bookmark(wanted)
        except ZFSError as error:
            raise ZfsFailed(f"{pool[0]}: cannot be made: {_why(error)}") from error


def destroy_bookmarks(names: Iterable[str]) -> None:
    """Destroy those of these bookmarks that exist. Raises ZfsFailed."""
    import libzfs_core
    from libzfs_core.exceptions import ZFSError

    for pool in _by_pool(names):
        try:
            libzfs_core.lzc_destroy_bookmarks([name.encode() for name in pool])
        except ZFSError as error:
            raise ZfsFailed(f"{pool[0]}: cannot be destroyed: {_why(error)}") from error


def hold(snapshots: Iterable[str], tag: str) -> set[str]:
    """Hold those of these snapshots that exist, none of which has that hold yet; the others.

    Raises ZfsFailed.
    """
    import libzfs_core
    from libzfs_core.exceptions import ZFSError

    missing: set[str] = set()
    for pool in _by_pool(snapshots):
        try:
            gone = libzfs_core.lzc_hold({name.encode(): tag.encode() for name in pool})
        except ZFSError as error:
            raise ZfsFailed(f"{pool[0]}: cannot be held: {_why(error)}") from error
        missing |= {name.decode() for name in gone}
    return missing


def release(snapshots: Iterable[str], tag: str) -> None:
    """Release that hold of those of these snapshots that have it. Raises ZfsFailed."""
    import libzfs_core
    from libzfs_core.exceptions import ZFSError

    for pool in _by_pool(snapshots):
        try:
            libzfs_core.lzc_release({name.encode(): [tag.encode()] for name in pool})
        except ZFSError as error:
            raise ZfsFailed(f"{pool[0]}: cannot be released: {_why(error)}") from error


def tags(snapshot: str) -> set[str]:
    """The tags with which a snapshot is held; none if it does not exist. Raises ZfsFailed."""
    # A tag may be any bytes; ours are ASCII.
    return {tag.decode(errors="replace") for tag in _all_holds([snapshot])[snapshot] or ()}


def existing(snapshots: Iterable[str]) -> list[str]:
    """Those of these snapshots that exist, by one ioctl for each.

    libzfs_core has numbers for its errors: none is taken for "no such snapshot". Raises ZfsFailed.
    """
    return [snapshot for snapshot, holds in _all_holds(snapshots).items() if holds is not None]


def seems_to_exist(snapshot: str) -> bool:
    """Does the snapshot exist, as far as one ioctl of this thread tells, which may hang?

    False as well if that cannot be told. Nothing is written for it, unlike a channel program, which
    the pool's history has a line of.
    """
    import libzfs_core

    return bool(libzfs_core.lzc_exists(snapshot.encode()))


def _all_holds(snapshots: Iterable[str]) -> dict[str, Iterable[bytes] | None]:
    """The tags of the holds of each; None if it does not exist."""
    import libzfs_core
    from libzfs_core.exceptions import SnapshotNotFound, ZFSError

    holds: dict[str, Iterable[bytes] | None] = {}

    def ask() -> None:
        for snapshot in snapshots:
            try:
                holds[snapshot] = libzfs_core.lzc_get_holds(snapshot.encode())
            except SnapshotNotFound:
                holds[snapshot] = None
            except ZFSError as error:
                raise ZfsFailed(f"{snapshot}: cannot be asked for: {error}") from error

    try:
        Call(ask).answer()
    except GivenUp as error:
        raise ZfsFailed(f"cannot ask for snapshots: {error}") from error
    return holds


def _by_pool(names: Iterable[str]) -> list[list[str]]:
    pools: dict[str, list[str]] = {}
    for name in names:
        pools.setdefault(re.split("[/@#]", name, maxsplit=1)[0], []).append(name)
    return list(pools.values())


def _why(error: Exception) -> str:
    """The first of the errors that one call may have."""
    return str(next(iter(getattr(error, "errors", ())), error))
