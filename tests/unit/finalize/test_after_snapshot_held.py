"""after_snapshot of guests that are paused or frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, PauseParts, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt.guest import Pause
from zvmsnap.zfs import mounts

T = "autosnap_2026-11-20_03:00:00"
OWNER = Process(4711, 815, "a-boot")
CALL = HookCall(Role.POST, ("tank/web",), (f"{T}_hourly",))
Hold = Callable[..., Entry]
PAUSED, QUIESCED, CRASH = ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED, ConsistencyLevel.CRASH
BOTH = pytest.mark.parametrize("level", [PAUSED, QUIESCED])


@pytest.fixture(autouse=True)
def _seams(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setattr(mounts, "read_table", list)


def points(config: Config) -> list[Manifest]:
    return [
        point.manifest
        for point in vault.entries(config.vault_dir)
        if isinstance(point, RestorePoint)
    ]


def assert_done(config: Config, guest: FakeGuest) -> None:
    """It runs, and nothing of the run is left in journal and staging."""
    assert guest.paused_because is None
    assert guest.agent and not guest.agent.frozen
    assert Journal(config.journal_dir).entries() == []
    assert list(config.staging_dir.iterdir()) == []


@BOTH
def test_a_whole_run(config: Config, guest: FakeGuest, hold: Hold, level: ConsistencyLevel) -> None:
    hold(level)
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert_done(config, guest)
    assert guest.calls == ["resume" if level is PAUSED else "thaw"]
    (manifest,) = points(config)
    assert (manifest.level, manifest.reason) == (level, None)
    assert (manifest.memory is not None) is (level is PAUSED)
    assert 5 <= manifest.timing.pause_s < 500


def runs(guest: FakeGuest) -> None:
    guest.paused_because = None


def thaws(guest: FakeGuest) -> None:
    assert guest.agent
    guest.agent.thaw()


def is_shut_off(guest: FakeGuest) -> None:
    guest.shut_off()


def is_still_dumped(guest: FakeGuest) -> None:
    """Until the third call of has_job."""
    guest.job, guest.paused_because = True, None

    def look() -> None:
        guest.at["has_job"] = ends

    def ends() -> None:
        guest.job, guest.paused_because = False, Pause.JOB

    guest.at["has_job"] = look


def nothing(guest: FakeGuest) -> None:
    pass


NOT_FROZEN = {"disks_frozen_at_s": 0.0, "held_since_s": 0.0}

LESS = [
    pytest.param(PAUSED, {}, runs, "it went on before its snapshot", id="resumed by somebody"),
    pytest.param(PAUSED, {}, is_shut_off, "it went on before its snapshot", id="paused, off"),
    pytest.param(
        PAUSED, NOT_FROZEN, nothing, "pre ended before the disks were frozen", id="dead hook"
    ),
    pytest.param(
        PAUSED,
        NOT_FROZEN,
        is_still_dumped,
        "pre ended before the disks were frozen",
        id="a dump that goes on",
    ),
    pytest.param(PAUSED, {"memory_format": ""}, nothing, None, id="paused, header not read yet"),
    pytest.param(QUIESCED, {}, thaws, "thawed before its snapshot was known", id="thaws by itself"),
    pytest.param(QUIESCED, {}, is_shut_off, "it was shut off while", id="quiesced, off"),
    pytest.param(
        QUIESCED,
        {"disks_frozen_at_s": 0.0},
        nothing,
        "pre ended before its file systems were frozen",
        id="dead in the freeze",
    ),
    pytest.param(
        QUIESCED,
        {"frozen": False, **NOT_FROZEN},
        thaws,
        "pre ended before its file systems were frozen",
        id="dead before the freeze",
    ),
]


@pytest.mark.parametrize(("level", "changes", "happens", "reason"), LESS)
def test_less_than_was_begun(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    level: ConsistencyLevel,
    changes: dict[str, Any],
    happens: Callable[[FakeGuest], None],
    reason: str | None,
) -> None:
    hold(level, **changes)
    happens(guest)
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert_done(config, guest)
    (manifest,) = points(config)
    assert manifest.level is (CRASH if reason else level)
    assert (reason or "") in (manifest.reason or "")
    assert (manifest.memory is not None) is (reason is None)


@pytest.mark.parametrize(("level", "changes", "happens", "reason"), LESS)
@pytest.mark.parametrize("by_post", [True, False])
def test_less_than_is_required_is_no_point(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    hold: Hold,
    caplog: pytest.LogCaptureFixture,
    level: ConsistencyLevel,
    changes: dict[str, Any],
    happens: Callable[[FakeGuest], None],
    reason: str | None,
    by_post: bool,
) -> None:
    entry = hold(level, minimum_level=level, **changes)
    happens(guest)
    if by_post:
        assert after_snapshot.finish_run(CALL, config, OWNER) is (reason is None)
    else:
        after_snapshot.finish_entry(config, host, entry)
    assert_done(config, guest)
    assert [manifest.level for manifest in points(config)] == ([] if reason else [level])
    assert [path.name for path in (config.vault_dir / "web").iterdir() if path.name[0] == "."] == []
    assert (f"no point, as less than {level} is not good enough: " in caplog.text) is bool(reason)
    assert (reason or "") in caplog.text


@BOTH
def test_more_than_is_required(
    config: Config, guest: FakeGuest, hold: Hold, level: ConsistencyLevel
) -> None:
    hold(level, minimum_level=QUIESCED)
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert [manifest.level for manifest in points(config)] == [level]


def test_agent_that_does_not_answer_keeps_the_entry_open(
    config: Config, guest: FakeGuest, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    known = hold(QUIESCED)
    assert guest.agent
    guest.agent.answering = False
    assert not after_snapshot.finish_run(CALL, config, OWNER)
    noted = SnapshotRef("tank/web", f"{T}_hourly", 11, 1)
    assert Journal(config.journal_dir).entries() == [
        msgspec.structs.replace(
            known, step="resume or thaw", snapshots_at_release=(11,), refs_at_release=(noted,)
        )
    ]
    assert points(config) == []
    assert "by hand: virsh domfsthaw web" in caplog.text
    guest.agent.answering = True
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert_done(config, guest)
    assert [manifest.level for manifest in points(config)] == [QUIESCED]


@BOTH
def test_released_but_not_published(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
    level: ConsistencyLevel,
) -> None:
    hold(level)

    def full(*_arguments: object) -> None:
        raise OSError("no space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault, "publish", full)
        assert not after_snapshot.finish_run(CALL, config, OWNER)
    (left,) = Journal(config.journal_dir).entries()
    assert not (left.paused or left.frozen)
    # That it runs now does not mean that it ran before its snapshot.
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert_done(config, guest)
    assert [manifest.level for manifest in points(config)] == [level]
    assert len(guest.calls) == 1


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@BOTH
def test_guest_that_does_not_exist_any_more(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    tmp_path: Path,
    level: ConsistencyLevel,
    when: str,
) -> None:
    """Nobody knows how long it was held; post-thaw runs all the same."""
    path = tmp_path / "guest.d" / "web" / "post-thaw"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    path.chmod(0o755)
    config = msgspec.structs.replace(config, guest_scripts=str(tmp_path / "guest.d"))
    hold(level, thaw_script_due=level is QUIESCED)

    def vanish() -> None:
        guest.exists = False

    if when == "before":
        vanish()
    else:
        guest.at["resume" if level is PAUSED else "thaw"] = vanish
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert Journal(config.journal_dir).entries() == []
    (manifest,) = points(config)
    assert (manifest.level, manifest.memory) == (CRASH, None)
    assert manifest.reason == "it is gone, and may have gone on before its snapshot"
    if level is QUIESCED:
        assert (tmp_path / "ran").read_text() == "ran\n"


@BOTH
def test_an_interrupted_run(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    hold: Hold,
    level: ConsistencyLevel,
) -> None:
    after_snapshot.finish_interrupted(config, host, guest, hold(level, owner=Process.none()))
    assert_done(config, guest)
    assert [manifest.level for manifest in points(config)] == [level]


@BOTH
def test_without_a_snapshot_there_is_no_point(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, level: ConsistencyLevel
) -> None:
    pools.present = {}
    hold(level)
    assert not after_snapshot.finish_run(CALL, config, OWNER)
    assert_done(config, guest)
    assert points(config) == []


def test_several_names_are_one_point(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold
) -> None:
    names = (f"{T}_hourly", f"{T}_daily")
    pools.present = {f"tank/web@{name}": number for number, name in enumerate(names)}
    hold(QUIESCED, snapshot_names=names, preexisting_guids=())
    assert after_snapshot.finish_run(HookCall(Role.POST, ("tank/web",), names), config, OWNER)
    (manifest,) = points(config)
    assert sorted(ref.name for ref in manifest.snapshots) == sorted(names)


def test_times_of_a_guest_that_was_on_no_overlay(
    config: Config, guest: FakeGuest, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zvmsnap")
    hold(PAUSED, dump_s=3.5, pause_parts=PauseParts(ram_s=0.25, flush_s=0.5))
    assert after_snapshot.finish_run(CALL, config, OWNER)
    (manifest,) = points(config)
    assert manifest.timing.dump_s == 3.5
    parts = manifest.timing.pause_parts
    assert (parts.ram_s, parts.flush_s, parts.resume_s) == (0.25, 0.5, 0)
    assert parts.sum_s == pytest.approx(manifest.timing.pause_s)
    assert parts.snapshot_s > 1
    assert (manifest.timing.overlay_s, manifest.timing.commit_s) == (0, 0)
    assert f"MiB of RAM stored, paused for {manifest.timing.pause_s:.2f} s" in caplog.text
