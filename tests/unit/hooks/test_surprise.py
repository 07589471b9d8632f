import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from zvmsnap.common.process import Process
from zvmsnap.hooks import surprise
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.journal.round import Expected, Round
from zvmsnap.zfs import types, zfs

T = "autosnap_2026-11-26_00:00:00"
CALL = HookCall(Role.POST, ("tank/vm",), (f"{T}_daily", f"{T}_hourly"))
OWNER = Process.of(os.getpid())
TOP, BELOW = "tank/vm@", "tank/vm/web@"
DAILY, HOURLY, DST = f"{T}_daily", f"{T}_hourly", f"{T}dst_hourly"


def judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    txgs: Mapping[str, int],
    *,
    recursive: bool,
    exists: bool = True,
    inconsistent: str = "0",
) -> bool:
    """Post after a pre that has expected that; the snapshots, and the groups they are of."""

    def snapshots(names: set[str]) -> types.NamedSnapshots:
        split = {name: name.partition("@") for name in names if name in txgs}
        return types.NamedSnapshots(
            {name: types.Snapshot(ds, at, 1, txgs[name]) for name, (ds, _, at) in split.items()},
            frozenset({"tank"}),
        )

    monkeypatch.setattr(zfs, "snapshots", snapshots)
    lineages = {"tank/vm": types.Lineage(1, "")} | (
        {"tank/vm/web": types.Lineage(2, "")} if exists else {}
    )
    monkeypatch.setattr(zfs, "lineages", lambda: lineages)
    properties = {("tank/vm/web", ("inconsistent",)): {"inconsistent": inconsistent}}
    monkeypatch.setattr(zfs, "properties", lambda *asked: properties[asked])
    notes = Round(tmp_path, OWNER)
    notes.expect({"tank/vm": Expected(recursive, "tank/vm/web")})
    return surprise.as_expected(CALL, notes)


@pytest.mark.parametrize(
    ("txgs", "recursive"),
    [
        pytest.param({f"{TOP}{HOURLY}": 7, f"{BELOW}{HOURLY}": 7}, True, id="at once"),
        pytest.param({f"{TOP}{DST}": 7, f"{BELOW}{DST}": 7}, True, id="at once, clocks set back"),
        pytest.param(
            {f"{TOP}{HOURLY}": 7, f"{TOP}{DAILY}": 6, f"{BELOW}{HOURLY}": 7, f"{BELOW}{DAILY}": 6},
            True,
            id="two of them",
        ),
        pytest.param({f"{TOP}{HOURLY}": 7}, False, id="alone"),
        pytest.param(
            {f"{TOP}{HOURLY}": 7, f"{BELOW}{HOURLY}": 9}, False, id="each by itself, at one second"
        ),
    ],
)
def test_whether_it_was_recursive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    txgs: Mapping[str, int],
    recursive: bool,
) -> None:
    assert judged(tmp_path, monkeypatch, txgs, recursive=recursive)
    assert caplog.records == []
    assert not judged(tmp_path, monkeypatch, txgs, recursive=not recursive)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    how, value = ("with all", "on") if recursive else ("without the", "off")
    assert record.getMessage() == (
        f"tank/vm was snapshotted {how} datasets below it, and that was not expected: guests with "
        f"disks below it have no point of {T}. To say it beforehand: zfs set "
        f"zvmsnap:recursive={value} tank/vm"
    )


@pytest.mark.parametrize(
    ("txgs", "recursive", "exists"),
    [
        pytest.param({}, True, True, id="not taken"),
        pytest.param({f"{BELOW}{HOURLY}": 7}, False, True, id="only below, by itself"),
        pytest.param({f"{TOP}{HOURLY}": 7}, True, False, id="what was below is gone"),
    ],
)
def test_what_cannot_be_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    txgs: Mapping[str, int],
    recursive: bool,
    exists: bool,
) -> None:
    assert judged(tmp_path, monkeypatch, txgs, recursive=recursive, exists=exists)


def test_a_dataset_that_is_being_received_is_no_witness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(tmp_path, monkeypatch, {f"{TOP}{HOURLY}": 7}, recursive=True, inconsistent="1")


def test_of_other_datasets_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(zfs, "snapshots")
    Round(tmp_path, OWNER).expect({"tank/other": Expected(True, "tank/other/a")})
    assert surprise.as_expected(CALL, Round(tmp_path, OWNER))
