"""post: are the snapshots of a round as recursive as pre has expected?

`zfs snapshot -r` takes all its snapshots in one transaction group, and each `zfs snapshot` has one
of its own. So one dataset below tells, even if sanoid snapshots that one as well, under the same
name:

| the dataset's snapshot | one below it of the same name     | it was        |
|------------------------|-----------------------------------|---------------|
| exists                 | of the same transaction group     | recursive     |
| exists                 | of another one, or does not exist | not recursive |
| does not exist         | any                               | not taken     |

`zfs snapshot -r` leaves out a dataset that is being received for the first time: that one tells
nothing.
"""

from __future__ import annotations

from zvmsnap.common import log
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.journal.request import HookCall
from zvmsnap.journal.round import Expected, Round
from zvmsnap.zfs import zfs


def as_expected(call: HookCall, round_: Round) -> bool:
    """Is it as pre has expected of each dataset? If not, that is logged. Raises ZfsFailed."""
    expected = round_.notes.expected
    surprises = [
        surprise
        for dataset in call.datasets
        if dataset in expected and (surprise := _surprise(dataset, expected[dataset], call))
    ]
    for surprise in surprises:
        log.plain().error("%s", surprise)
    return not surprises


def _surprise(dataset: str, expected: Expected, call: HookCall) -> str:
    """What was not expected of that dataset; "" if nothing, or it cannot be known."""
    names = {spelling for name in call.names for spelling in spellings(name)}
    below = expected.witness
    present = zfs.snapshots(f"{each}@{name}" for each in (dataset, below) for name in names).present
    txgs = {
        (each, name): present[f"{each}@{name}"].createtxg
        for each in (dataset, below)
        for name in names
        if f"{each}@{name}" in present
    }
    taken = [name for name in names if (dataset, name) in txgs]
    recursive = any(txgs[dataset, name] == txgs.get((below, name)) for name in taken)
    if not taken or recursive == expected.recursive:
        return ""
    if not recursive and (below not in zfs.lineages() or _is_inconsistent(below)):
        return ""
    how = "with all datasets below it" if recursive else "without the datasets below it"
    value = "on" if recursive else "off"
    return (
        f"{dataset} was snapshotted {how}, and that was not expected: guests with disks below it "
        f"have no point of {call.run}. To say it beforehand: zfs set zvmsnap:recursive={value} "
        f"{dataset}"
    )


def _is_inconsistent(dataset: str) -> bool:
    # A property that `zfs get` lists only by its name: zfs_prop_init() in OpenZFS's zfs_prop.c.
    return zfs.properties(dataset, ("inconsistent",)).get("inconsistent") == "1"
