"""Sends that are under way: while a snapshot is being sent, it can neither move nor be destroyed.

A first send may take days. So it is looked for before anything stops: by what the kernel holds, and
by the processes, of which the kernel says nothing. One that sends many snapshots counts as well
between two of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from zvmsnap.common.errors import Cancelled, RestoreImpossible
from zvmsnap.common.waiting import wait, wait_until
from zvmsnap.journal.operation import RestoreOperation
from zvmsnap.zfs import sends, zfs
from zvmsnap.zfs.sends import Sender
from zvmsnap.zfs.types import Dataset, Snapshot

_POLL_S = 1.0
_END_S = 30.0


@dataclass(frozen=True)
class RunningSends:
    """Snapshots that are held, and the processes that send snapshots of their datasets.

    `concerned` are all that were asked for.
    """

    held: tuple[str, ...]
    senders: tuple[Sender, ...]
    concerned: tuple[str, ...] = ()

    @classmethod
    def among(cls, snapshots: Iterable[str]) -> RunningSends:
        """Those of these snapshots. Raises ZfsFailed."""
        concerned = tuple(snapshots)
        datasets = {name.partition("@")[0] for name in concerned}
        return cls(tuple(sends.held(concerned)), tuple(sends.senders(datasets)), concerned)

    def __bool__(self) -> bool:
        """Are they in the way?"""
        return bool(self.held) or any(sender.many for sender in self.senders)

    def __str__(self) -> str:
        """What is being sent, and by whom."""
        what = ", ".join(self.held) or "snapshots of its datasets"
        verb = "is" if len(self.held) == 1 else "are"
        by = ", ".join(map(str, self.senders)) or "a process that is no `zfs send` of this host"
        return f"{what} {verb} being sent by {by}"

    def refuse(self, domain: str) -> None:
        """Raises RestoreImpossible if they are in the way."""
        if self:
            raise RestoreImpossible(
                f"{domain}: {self}, and cannot be moved meanwhile: zvmsnap restore --wait waits "
                "until that is over, --end-sends ends it; or zvmsnap clone the point"
            )


def find(
    operation: RestoreOperation, datasets: Mapping[str, Dataset], present: Iterable[Snapshot]
) -> RunningSends:
    """Those that are in the way of the operation. Raises ZfsFailed."""
    concerned = _concerned(operation, datasets, list(present))
    return RunningSends.among(snapshot.full_name for snapshot in concerned)


def find_now(operation: RestoreOperation) -> RunningSends:
    """The same, of what ZFS lists now. Raises ZfsFailed."""
    return find(operation, zfs.datasets(), zfs.all_snapshots().snapshots)


def wait_for_end(operation: RestoreOperation, cancelled: threading.Event) -> None:
    """Wait until no send is in the way, however long that takes. Raises Cancelled."""
    while find_now(operation):
        if wait(cancelled, _POLL_S):
            raise Cancelled("interrupted while a send was waited for: nothing was touched")


def end(operation: RestoreOperation) -> None:
    """End the processes that send. Raises RestoreImpossible if the snapshots are held on."""
    for sender in find_now(operation).senders:
        if sender.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(sender.process.pid, signal.SIGTERM)
    if not wait_until(lambda: not find_now(operation), _END_S, _POLL_S):
        raise RestoreImpossible(
            f"{operation.domain}: {find_now(operation)}, and did not end within {_END_S:g} s"
        )


def _concerned(
    operation: RestoreOperation, datasets: Mapping[str, Dataset], present: list[Snapshot]
) -> Iterator[Snapshot]:
    """The snapshots that a promotion moves, or a rollback destroys."""
    for origin in _branches(operation, datasets):
        txg = _txg(origin, present)
        dataset = origin.partition("@")[0]
        yield from (s for s in present if s.dataset == dataset and s.createtxg <= txg)
    for target in operation.rollback:
        txg = _txg(target, present)
        dataset = target.partition("@")[0]
        yield from (s for s in present if s.dataset == dataset and s.createtxg > txg)


def _branches(operation: RestoreOperation, datasets: Mapping[str, Dataset]) -> Iterator[str]:
    """The snapshots at which clones branch off the datasets over which they are promoted."""
    by_guid = {dataset.guid: dataset for dataset in datasets.values()}
    for tree in operation.swap_trees:
        for swapped in tree.datasets:
            branch = swapped.origin
            for guid in swapped.promoted_over:
                yield branch
                branch = by_guid[guid].origin


def _txg(full_name: str, present: Iterable[Snapshot]) -> int:
    return next((s.createtxg for s in present if s.full_name == full_name), 0)
