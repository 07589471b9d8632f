"""What becomes of each disk in a restore, whether it is part of the point or not. Pure.

| the disk                                 | its dataset                | afterwards              |
|------------------------------------------|----------------------------|-------------------------|
| of the point                             | restored                   | as of the snapshot      |
| of its definition only, an empty drive   |                            | empty                   |
| of its definition only                   | restored, for another disk | as of the snapshot      |
| of its definition only                   | any other, or none         | stays as it is now      |
| of its next start only                   | restored                   | as of the snapshot      |
| of its next start only                   | any other, or none         | stays as it is now      |
| of the replaced guest only               | restored, for another disk | with the replaced disks |
| of the replaced guest only               | any other, or none         | stays, but is detached  |
| other state of the point                 | restored                   | as of the snapshot      |
| other state that the point does not have | any                        | stays as it is now      |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from zvmsnap.journal.operation import RestoreOperation
from zvmsnap.points.manifest import Manifest
from zvmsnap.restore.observe import Observed
from zvmsnap.virt import domain_xml


def of(manifest: Manifest, operation: RestoreOperation, observed: Observed) -> Iterator[str]:
    """A line for each disk of the restored and of the replaced guest."""
    origins = {
        tree.top + dataset.path: dataset.origin
        for tree in operation.swap_trees
        for dataset in tree.datasets
    } | {snapshot.partition("@")[0]: snapshot for snapshot in operation.rollback}
    for own in manifest.disks:
        dataset = observed.current[own.dataset]
        yield f"disk {own.target} will be as of {origins.get(dataset, dataset)}"
    for state in manifest.other_state:
        if state.why:
            yield f"{state.called} ({state.place}) {state.why}: it STAYS as it is now"
        else:
            dataset = observed.current[state.dataset]
            yield f"{state.called} will be as of {origins.get(dataset, dataset)}"
    for other in observed.other_disks:
        yield _of_other(other.disk, other.dataset, origins)
    yield from _of_next_start(manifest, observed, origins)
    if observed.replaced is None:
        return
    kept = {own.target for own in manifest.disks}
    kept |= {other.disk.target for other in observed.other_disks}
    for disk in observed.replaced.disks.domain.disks:
        if disk.target not in kept:
            place = observed.replaced.disks.locations.get(disk.target)
            yield _of_replaced(disk, place.dataset if place else "", origins)


def _of_next_start(
    manifest: Manifest, observed: Observed, origins: Mapping[str, str]
) -> Iterator[str]:
    """The disks that the guest does not start with now."""
    known = {own.source for own in manifest.disks}
    known |= {other.disk.source for other in observed.other_disks}
    for disk in observed.next_disks:
        if disk.source not in known:
            dataset = observed.current[disk.dataset]
            what = f"disk {disk.target} of its next start"
            yield f"{what} will be as of {origins.get(dataset, dataset)}, too"
    for outside in observed.next_outside:
        if outside.source not in known:
            what = f"disk {outside.target} of its next start ({_where(outside)})"
            yield f"{what} is no part of the point: it STAYS as it is now"


def _of_other(disk: domain_xml.Disk, dataset: str, origins: Mapping[str, str]) -> str:
    what = f"disk {disk.target} ({_where(disk)}) is no part of the point"
    if not disk.writable and not disk.source and disk.type in ("file", "block"):
        return f"drive {disk.target} will be empty"
    if dataset in origins:
        return f"{what}, but will be as of {origins[dataset]}, too"
    return f"{what}: it STAYS as it is now"


def _of_replaced(disk: domain_xml.Disk, dataset: str, origins: Mapping[str, str]) -> str:
    what = f"disk {disk.target} ({_where(disk)}) is not in the definition of the point: detached"
    if dataset in origins:
        return f"{what}, and kept with the replaced disks"
    return f"{what}, and left as it is now"


def _where(disk: domain_xml.Disk) -> str:
    return disk.source or ("/".join(disk.volume) if disk.volume else f"of type {disk.type}")
