"""Files that another version has written: named, left alone, and no guest suffers from them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.capture_scene import Scene
from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import holds, write
from tests.fakes.restore_case import put_back
from tests.fakes.restore_scene import set_scene
from tests.fakes.zfs_pool import FakeZfs, listed
from zvmsnap.common.errors import DropRefused, SendRefused, WorkOfOtherVersion
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import MANIFEST, MEMORY, Manifest
from zvmsnap.recovery import recover
from zvmsnap.recovery.report import Result
from zvmsnap.replication import wait_idle
from zvmsnap.retention import drop, forget, prune
from zvmsnap.zfs import mounts, zfs

Stage = Callable[..., Entry]
T = "autosnap_2026-11-20_03:00:00"
TOLD = "schema 9 is not one this version reads"


@pytest.fixture(autouse=True)
def _seams(pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(zfs, "all_snapshots", lambda guids=None: listed([], "tank"))


def age(config: Config, owner: Process | None = None, folder: str = ".") -> tuple[Path, bytes]:
    """Make the guest's file in the journal one of another version; its path and content."""
    path = config.journal_dir / folder / f"{UUID}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = owner or Process(4711, 815, "a-boot")
    data = msgspec.json.encode({"schema": 9, "owner": owner, "guest": {"id": UUID}})
    path.write_bytes(data)
    return path, data


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("running", [True, False], ids=["runs", "off"])
def test_recover_brings_the_guest_back_and_leaves_the_rest(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, running: bool
) -> None:
    known = staged()
    path, data = age(config)
    if not running:
        guest.shut_off()
    (needed,) = recover.recover_guests(config, dry_run=True).outcomes
    assert needed.result is Result.NEEDED
    assert "its journal entry is of another version" in needed.findings
    for _ in range(2):
        report = recover.recover_guests(config)
        (outcome,) = report.outcomes
        assert outcome.result is Result.FAILED and not report.complete
        assert outcome.why.startswith(f"{path}: {TOLD}: finish it with the version of zvmsnap")
        assert (report.removed, report.problems) == ([], [])
    assert guest.persistent["vda"].endswith("vda.raw")
    assert holds(Path(guest.persistent["vda"]), 7)
    assert guest.active is running
    assert tree(config.journal_dir)[path.name] == data
    capture = StagingDir(config.staging_dir / known.capture)
    assert capture.overlays() == []
    assert sorted(os.listdir(capture.point)) == ["domain.xml", MEMORY]


def test_whose_run_is_under_way_is_not_touched(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage
) -> None:
    staged()
    age(config, Process.of(os.getpid()))
    before = (tree(config.journal_dir), tree(config.staging_dir))
    (outcome,) = recover.recover_guests(config).outcomes
    assert outcome.result is Result.FAILED
    assert f"and pid {os.getpid()} works by it" in outcome.why
    assert guest.calls == []
    assert (tree(config.journal_dir), tree(config.staging_dir)) == before


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_guest_that_is_held_is_released(
    config: Config, guest: FakeGuest, host: FakeHost, hold: Stage, level: ConsistencyLevel
) -> None:
    hold(level)
    path, data = age(config)
    before = tree(config.staging_dir)
    assert not recover.recover_guests(config).complete
    assert guest.agent and not (guest.paused_because or guest.agent.frozen)
    assert tree(config.journal_dir)[path.name] == data
    assert tree(config.staging_dir) == before


def test_guest_that_is_gone_and_operations_are_left_to_a_person(
    config: Config, host: FakeHost
) -> None:
    operation, _ = age(config, folder="operations")
    host.known.clear()
    entry, _ = age(config)
    before = tree(config.journal_dir)
    report = recover.recover_guests(config)
    assert not report.complete and report.outcomes == []
    assert [problem.partition(":")[0] for problem in report.problems] == [
        str(entry),
        str(operation),
    ]
    assert len(recover.recover_guests(config, UUID).problems) == 2
    assert tree(config.journal_dir) == before


@pytest.mark.parametrize("on_overlay", [True, False])
def test_new_capture_is_refused(
    scene: Scene, on_overlay: bool, caplog: pytest.LogCaptureFixture
) -> None:
    guest = scene.add()
    config = scene.config
    path, data = age(config)
    capture = StagingDir(config.staging_dir / f"{UUID}.00000001")
    capture.make()
    capture.memory.write_bytes(b"RAM")
    if on_overlay:
        write(guest.on_overlay("vda", capture.overlay("vda")), 7)
    assert not scene.pre()
    assert guest.live["vda"].endswith("vda.raw")
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"web (tank/web): no point: {path}: {TOLD}: finish it with the version of zvmsnap that "
        "wrote it (zvmsnap recover), or move the file away"
    ]
    assert (scene.entries(), path.read_bytes()) == ([], data)
    assert capture.memory.read_bytes() == b"RAM"
    path.unlink()
    assert scene.pre()


def test_new_capture_is_refused_during_a_restore_of_another_version(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    guest = scene.add()
    path, data = age(scene.config, folder="operations")
    assert not scene.pre()
    assert f"no point: {path}: {TOLD}" in caplog.text
    assert (guest.calls, path.read_bytes()) == ([], data)


@pytest.mark.parametrize("folder", [".", "operations"])
def test_restore_is_refused(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    scene = set_scene(config, tmp_path, manifest, monkeypatch)
    path, data = age(scene.config, folder=folder)
    point = scene.point(memory=False, level=ConsistencyLevel.CRASH)
    with pytest.raises(WorkOfOtherVersion, match=TOLD):
        put_back(scene, point)
    assert path.read_bytes() == data
    assert [file for file in tree(config.journal_dir) if file.endswith(".json")] == [
        str(path.relative_to(config.journal_dir))
    ]


@pytest.mark.parametrize("folder", [".", "operations", "late/4711-815"])
def test_prune_keeps_all_captures_of_such_a_guest(config: Config, folder: str) -> None:
    age(config, folder=folder)
    other = UUID.replace("c0ffee", "c0ffff")
    for uuid in (UUID, other):
        capture = StagingDir(config.staging_dir / f"{uuid}.00000001")
        capture.make()
        capture.memory.write_bytes(b"RAM")
        incoming = vault.incoming(config.vault_dir, "web", f"{uuid}.00000001")
        (incoming / MEMORY).write_bytes(b"RAM")
    sweep = prune.sweep(config)
    assert (sweep.leftovers.overlays, len(sweep.leftovers.paths)) == ([], 2)
    assert list(tree(config.staging_dir)) == [f"{UUID}.00000001/point/{MEMORY}"]
    assert list(tree(config.vault_dir)) == [f"web/.incoming-{UUID}.00000001/{MEMORY}"]


@pytest.mark.parametrize("folder", ["operations", "waiting", "late/4711-815"])
def test_recover_names_it(config: Config, host: FakeHost, folder: str) -> None:
    path, data = age(config, folder=folder)
    report = recover.recover_guests(config)
    assert [problem for problem in report.problems if f"{path}: {TOLD}" in problem]
    assert not report.complete and path.read_bytes() == data


def test_points_of_another_version_are_told_and_stay(
    config: Config,
    host: FakeHost,
    manifest: Callable[..., Manifest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = config.vault_dir / "web" / T
    directory.mkdir(parents=True)
    data = {**msgspec.to_builtins(manifest(run=T)), "schema": 9, "level": {"name": "memory"}}
    (directory / MANIFEST).write_text(json.dumps(data))
    (directory / MEMORY).write_bytes(b"RAM")
    before = tree(config.vault_dir)

    told = f"{directory / MANIFEST}: {TOLD}"
    assert [damaged.why for damaged in vault.read(config)[1]] == [told]
    call = HookCall(Role.PRUNE, ("tank/web",), (f"{T}_hourly",))
    assert not forget.forget(call, config)
    assert told in caplog.text
    assert [damaged.why for damaged in prune.sweep(config).damaged] == [told]
    assert drop.surplus(config, [UUID], 0) == []
    assert recover.recover_guests(config).complete
    incoming = vault.incoming(config.vault_dir, "web", f"{UUID}.00000002")
    newer = vault.publish(incoming, manifest(run=T, capture=f"{UUID}.00000002"))
    assert newer.directory.name == f"{T}.2"
    vault.remove(newer)
    assert tree(config.vault_dir) == before


@pytest.mark.parametrize("folder", [".", "operations", "late/4711-815"])
def test_a_point_is_not_dropped_whose_snapshots_its_work_may_need(
    config: Config, manifest: Callable[..., Manifest], folder: str
) -> None:
    incoming = vault.incoming(config.vault_dir, "web", f"{UUID}.00000002")
    point = vault.publish(incoming, manifest(run="zvmsnap_x_manual"))
    path, _ = age(config, folder=folder)
    with pytest.raises(DropRefused, match=f"{path}: {TOLD}"):
        drop.snapshots(config, [point])
    assert drop.surplus(config, [UUID], 0) == []
    assert point.directory.exists()
    path.unlink()
    assert drop.surplus(config, [UUID], 0) == [point.name]


@pytest.mark.parametrize(
    ("folder", "alive", "busy"),
    [(".", True, True), (".", False, False), ("operations", False, True)],
)
def test_nothing_is_sent_during_its_work(
    config: Config, guest: FakeGuest, folder: str, alive: bool, busy: bool
) -> None:
    path, _ = age(config, Process.of(os.getpid()) if alive else None, folder)
    if busy:
        with pytest.raises(SendRefused, match=f"{path}: {TOLD}"):
            wait_idle.wait(config, [guest])
    else:
        wait_idle.wait(config, [guest])


def test_post_names_it(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = age(config)
    call = HookCall(Role.POST, ("tank/web",), (f"{T}_hourly",))
    assert after_snapshot.finish_run(call, config, Process(1, 1, "b"))
    assert f"{path}: {TOLD}" in caplog.text
