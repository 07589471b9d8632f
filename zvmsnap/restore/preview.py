"""What a restore will do, in words, for the operator to agree to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zvmsnap.journal.operation import RestoreOperation, StartState
from zvmsnap.points import compatibility

# By "with its RAM", and what the guest does in the end.
_END = {
    (True, StartState.RUNNING): "goes on from its RAM",
    (True, StartState.PAUSED): "gets the RAM of the point, and stays paused",
    (False, StartState.RUNNING): "boots from the restored disks",
    (False, StartState.PAUSED): "is started from the restored disks, and stays paused",
    (False, StartState.OFF): "stays off, as it was at the snapshot",
}


def describe(
    operation: RestoreOperation,
    fates: Iterable[str],
    destroyed: Iterable[str],
    reached: Iterable[str],
) -> Iterator[str]:
    """The lines; `fates` are of the disks.

    `destroyed` names the snapshots and points that a rollback destroys, `reached` what the guest
    reaches of the host by a definition that was not made here.
    """
    domain, safety = operation.domain, operation.safety_entry
    yield f"restore {operation.point}:"
    if operation.was_active:
        yield f"  {domain} is stopped" + ("; its RAM and disks are kept" if safety else "")
    if safety:
        yield f"  the replaced guest becomes the point {domain}@{safety.run}"
    else:
        yield "  the replaced guest is NOT kept as a point"
    for tree in operation.swap_trees:
        for dataset in tree.datasets:
            yield f"  {tree.top}{dataset.path} holds {dataset.origin} again"
        yield f"  the replaced disks, and newer snapshots, are on {tree.replaced_top} afterwards"
    for snapshot in operation.rollback:
        yield f"  {snapshot.partition('@')[0]} is rolled back to {snapshot}"
    for name in destroyed:
        yield f"  DESTROYS {name}"
    for fate in fates:
        yield f"  {fate}"
    yield from compatibility.trusted(reached)
    for target, (_, path, _) in (operation.sources | (operation.next_sources or {})).items():
        yield f"  disk {target} is at {path} now"
    yield f"  {domain} {_END[operation.memory, operation.start_state]}"
