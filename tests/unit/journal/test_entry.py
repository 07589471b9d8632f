"""The states of an entry, as its fields say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.journal.entry import Entry, EntryState

PAUSED = {"level": ConsistencyLevel.PAUSED, "paused": True}
TO_END_ITS_DUMP = {"level": ConsistencyLevel.MEMORY, "paused": True}
FROZEN = {"level": ConsistencyLevel.QUIESCED, "frozen": True}
CRASH = {"level": ConsistencyLevel.CRASH}
DISKS = {"disks_frozen_at_s": 1.0}
RECOVERY = {"run": "", "snapshot_names": ()}

ROWS = [
    ("undo dump", {}, False, EntryState.UNDOING),
    ("undo freeze", {**FROZEN, **DISKS}, True, EntryState.UNDOING),
    ("store", DISKS, True, EntryState.PUBLISHING),
    ("publish", {}, False, EntryState.PUBLISHING),
    ("close", RECOVERY, False, EntryState.PUBLISHING),
    ("tidy", {**FROZEN, **DISKS}, True, EntryState.COMMITTED),
    ("commit", DISKS, True, EntryState.COMMITTING),
    ("release vda", {}, True, EntryState.COMMITTING),
    ("merge vda", {**PAUSED, **DISKS}, True, EntryState.COMMITTING),
    ("redefine", RECOVERY, False, EntryState.COMMITTING),
    ("read header", {**PAUSED, **DISKS}, False, EntryState.HELD),
    ("frozen", {**FROZEN, **DISKS}, False, EntryState.HELD),
    ("overlay", {**FROZEN, **DISKS}, True, EntryState.HELD),
    ("", {**FROZEN, **RECOVERY}, False, EntryState.HELD),
    ("frozen", {**TO_END_ITS_DUMP, **DISKS}, True, EntryState.ON_OVERLAYS),
    ("read header", DISKS, True, EntryState.ON_OVERLAYS),
    ("", RECOVERY, False, EntryState.ON_OVERLAYS),
    ("frozen", {**CRASH, **DISKS}, False, EntryState.RELEASED),
    ("dump", {}, True, EntryState.DUMPING),
    ("dump", PAUSED, False, EntryState.DUMPING),
    ("dump", TO_END_ITS_DUMP, True, EntryState.DUMPING),
    ("freeze", FROZEN, False, EntryState.FREEZING),
    ("waiting", CRASH, False, EntryState.WAITING),
    ("", {}, True, EntryState.PREPARING),
    ("staging", {}, True, EntryState.PREPARING),
    ("definition", CRASH, False, EntryState.PREPARING),
    ("pre-freeze", {"thaw_script_due": True}, False, EntryState.PREPARING),
    ("barrier", {"level": ConsistencyLevel.QUIESCED}, False, EntryState.PREPARING),
    ("freeze", {"level": ConsistencyLevel.QUIESCED}, False, EntryState.PREPARING),
]


@pytest.mark.parametrize(("step", "fields", "overlays", "state"), ROWS)
def test_state(
    entry: Callable[..., Entry],
    step: str,
    fields: dict[str, Any],
    overlays: bool,
    state: EntryState,
) -> None:
    disk = msgspec.structs.replace(entry().disks[0], overlay="/o" if overlays else "")
    assert entry(step=step, disks=(disk,), **fields).state is state


def test_all_states_are_tested() -> None:
    assert {state for *_, state in ROWS} == set(EntryState)


@pytest.mark.parametrize(
    ("fields", "is_held", "holds_guest"),
    [
        ({}, False, False),
        (TO_END_ITS_DUMP, False, False),
        (PAUSED, True, True),
        (FROZEN, True, True),
        ({**CRASH, "frozen": True}, True, True),
        ({"thaw_script_due": True}, False, True),
    ],
)
def test_is_held(
    entry: Callable[..., Entry], fields: dict[str, Any], is_held: bool, holds_guest: bool
) -> None:
    known = entry(**fields)
    assert (known.is_held, known.holds_guest) == (is_held, holds_guest)


@pytest.mark.parametrize(("step", "changes", "overlays", "state"), ROWS)
def test_may_need_release_until_its_own_disks_are_proven(
    entry: Callable[..., Entry],
    step: str,
    changes: dict[str, Any],
    overlays: bool,
    state: EntryState,
) -> None:
    disks = tuple(
        msgspec.structs.replace(disk, overlay="/o" if overlays else "") for disk in entry().disks
    )
    known = entry(**{**changes, "step": step, "disks": disks})
    is_back = state in (EntryState.COMMITTED, EntryState.PUBLISHING)
    on_overlays = (overlays or known.is_recovery) and not is_back
    assert known.may_need_release is (known.holds_guest or on_overlays)
