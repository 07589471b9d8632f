"""What is marked on this host for a destination, so that each send can go on from the last one.

| mark     | on                         | made              | ends                               |
|----------|----------------------------|-------------------|------------------------------------|
| bookmark | each snapshot that is sent | before it is sent | when it is not among the newest of |
|          |                            |                   | the destination                    |
| hold     | each snapshot that is sent | before it is sent | when it has arrived, or no receive |
|          |                            |                   | of it was begun                    |

A bookmark is what remains of a snapshot when sanoid prunes it: it costs nothing, keeps nothing from
being pruned, and a stream can begin at it (zfs-bookmark(8)). There is one for each of the newest
snapshots of the destination, as that may prune some of them, too.

A receive that was interrupted goes on with its very snapshot, and with no other, until root gives
it up there (zfs-receive(8), -A). So what is being sent is held. While it is sent ZFS holds it
anyway; afterwards only the snapshot of an interrupted receive stays held.

Both are named after the destination. `forget` ends all of one that will never come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from zvmsnap.common import log
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.replication.send_plan import DatasetSend
from zvmsnap.zfs import marks, zfs
from zvmsnap.zfs.dataset_swap import name_before
from zvmsnap.zfs.types import Snapshot, Subtree

# How many of the newest snapshots of a dataset there have a bookmark here: those of two days of
# hourly snapshots, of which the destination may keep the daily ones alone.
_BOOKMARKS_MAX = 50
_TAG = "zvmsnap send to "


class SendMarks:
    """The marks of one destination."""

    def __init__(self, destination: str) -> None:
        self._tag = f"{_TAG}{destination}"
        # A hash: a bookmark's name has neither room for a destination nor all its characters.
        self._prefix = f"zvmsnap-{hashlib.sha256(destination.encode()).hexdigest()[:8]}-"

    def make(self, send: DatasetSend) -> None:
        """Before a dataset is sent: hold and bookmark all that is sent. Raises ZfsFailed."""
        ours = self._held(send)
        missing = marks.hold(
            [each.full_name for each in send.arriving if each not in ours], self._tag
        )
        sources = {each.guid: each.full_name for each in send.arriving}
        if send.common and not send.since_bookmark:
            sources[send.common.guid] = send.since
        existing = {each.full_name for each in send.bookmarks}
        wanted = {self._bookmark(send, guid): source for guid, source in sources.items()}
        try:
            marks.bookmark(
                {
                    bookmark: source
                    for bookmark, source in wanted.items()
                    if bookmark not in existing and source not in missing
                }
            )
        except ZfsFailed as error:
            # A pool without that feature, or a name that is too long.
            why = "if that snapshot is pruned, the next send cannot go on"
            log.about(send.dataset, "send").warning("%s: %s", error, why)

    def settle(self, send: DatasetSend, subtree: Subtree) -> None:
        """After a dataset was sent, or was not: end the marks that nobody needs any more.

        `subtree` is what the destination has now. Raises ZfsFailed.
        """
        there = dict.fromkeys(each.guid for each in subtree.of(send.target))
        # Streams go from the oldest to the newest; what has arrived may have been pruned there.
        arrived = [number for number, each in enumerate(send.arriving, 1) if each.guid in there]
        outstanding = send.arriving[max(arrived, default=0) :]
        going_on = outstanding[:1] if send.target in subtree.interrupted else ()
        held = {*self._held(send), *send.arriving}
        marks.release([each.full_name for each in held.difference(going_on)], self._tag)
        made = {self._bookmark(send, each.guid) for each in send.arriving}
        made |= {each.full_name for each in send.bookmarks if each.name.startswith(self._prefix)}
        needed = {*list(there)[-_BOOKMARKS_MAX:], *(each.guid for each in going_on)}
        marks.destroy_bookmarks(made - {self._bookmark(send, guid) for guid in needed})

    def release_replaced(self, datasets: Iterable[str]) -> None:
        """Release what a restore has set aside of these datasets: it is not sent any more.

        Raises ZfsFailed.
        """
        before = tuple(name_before(dataset, "") for dataset in datasets)
        held = [name for name in zfs.held_snapshots() if name.startswith(before)]
        ours = [name for name in held if self._tag in marks.tags(name)]
        marks.release(ours, self._tag)

    def forget(self) -> tuple[int, int]:
        """End all marks of the destination: so many bookmarks, and holds. Raises ZfsFailed."""
        bookmarks = [
            each.full_name for each in zfs.bookmarks() if each.name.startswith(self._prefix)
        ]
        marks.destroy_bookmarks(bookmarks)
        held = held_by_destination().get(self._tag.removeprefix(_TAG), [])
        marks.release(held, self._tag)
        return len(bookmarks), len(held)

    def _held(self, send: DatasetSend) -> set[Snapshot]:
        return {each for each in send.held if self._tag in marks.tags(each.full_name)}

    def _bookmark(self, send: DatasetSend, guid: int) -> str:
        return f"{send.dataset}#{self._prefix}{guid:016x}"


def held_by_destination() -> dict[str, list[str]]:
    """The snapshots, as `dataset@name`, that are held for each destination. Raises ZfsFailed."""
    held: dict[str, list[str]] = {}
    for snapshot in zfs.held_snapshots():
        for tag in marks.tags(snapshot):
            if tag.startswith(_TAG):
                held.setdefault(tag.removeprefix(_TAG), []).append(snapshot)
    return held
