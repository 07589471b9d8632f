"""How long a guest is expected to be paused: by its last points, or the number of its disks."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.capture_scene import Scene
from tests.fakes.guest import OTHER, UUID, DumpedGuest
from zvmsnap.capture.expected_pause import dump_bytes_per_s, why_too_long
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Limits
from zvmsnap.disks import apparmor
from zvmsnap.points import vault
from zvmsnap.points.manifest import DOMAIN_XML, Manifest, Memory, PauseParts, SnapshotRef, Timing

Build = Callable[..., Manifest]


class History:
    """Points of `web` in a vault, each newer than the one before."""

    def __init__(self, directory: Path, manifest: Build) -> None:
        self.vault = directory
        self._manifest = manifest
        self._number = 0

    def add(
        self,
        pause_s: float,
        last_ram_s: float = 0.0,
        disks: int = 2,
        parts: PauseParts = PauseParts(),  # noqa: B008
        dump_s: float = 0.0,
        **changes: object,
    ) -> None:
        self._number += 1
        capture = f"{UUID}.{self._number:08x}"
        (disk,) = self._manifest().disks
        made = self._manifest(
            run=f"run-{9 - self._number % 10}",
            capture=capture,
            snapshots=(SnapshotRef("tank/web", "x", self._number, createtxg=self._number),),
            disks=(disk,) * disks,
            timing=Timing(pause_s, dump_s, last_ram_s=last_ram_s, pause_parts=parts),
            **changes,
        )
        incoming = vault.incoming(self.vault, "web", capture)
        (incoming / DOMAIN_XML).touch()
        os.utime(incoming / DOMAIN_XML, (self._number, self._number))
        vault.publish(incoming, made)

    def why(self, limit_s: float, disks: int) -> str:
        return why_too_long(limit_s, self.vault, "web", UUID, disks)


@pytest.fixture
def history(tmp_path: Path, manifest: Build) -> History:
    return History(tmp_path / "vault", manifest)


@pytest.mark.parametrize(
    ("confined", "disks", "expected_s"),
    [(True, 1, 0.8), (True, 2, 1.3), (True, 20, 10.3), (False, 2, 0.6), (False, 20, 3.3)],
)
def test_without_history_by_the_number_of_disks(
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    confined: bool,
    disks: int,
    expected_s: float,
) -> None:
    """AppArmor compiles the guest's profile for each of them."""
    monkeypatch.setattr(apparmor, "confines", lambda _uuid: confined)
    assert history.why(expected_s + 0.01, disks) == ""
    assert history.why(expected_s - 0.01, disks) == (
        f"to put its {disks} disks on overlays it would be paused for about {expected_s:.1f} s, "
        f"by their number (limits.memory_max_pause_s is {expected_s - 0.01:g})"
    )


def test_twenty_disks_are_too_many_by_default(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apparmor, "confines", lambda _uuid: True)
    assert history.why(Limits().memory_max_pause_s, 20)
    assert not history.why(Limits().memory_max_pause_s, 19)


def test_by_the_last_points(history: History) -> None:
    """2 disks took 2.9 s; with 20 it would be 27.2 s."""
    history.add(2.9, last_ram_s=0.2)
    assert history.why(3, 2) == ""
    assert "about 27.2 s, by its last points" in history.why(10, 20)


def test_a_slow_flush_does_not_grow_with_the_number_of_disks(history: History) -> None:
    """2 disks took 1.2 s, once 0.3 s beside that; with 20 disks it would be 12.3 s, not 15."""
    history.add(1.5, last_ram_s=0.05, parts=PauseParts(ram_s=0.08, flush_s=0.12, resume_s=0.1))
    assert "about 12.3 s, by its last points" in history.why(10, 20)


def test_one_bad_night_is_not_all(history: History) -> None:
    for pause_s in (2.0, 2.0, 40.0, 40.0, 2.0):
        history.add(pause_s)
    assert history.why(3, 2) == ""


def test_only_the_newest_points_count(history: History) -> None:
    """It was put on a faster host since."""
    for pause_s in (*[40.0] * 5, *[2.0] * 5):
        history.add(pause_s)
    assert history.why(3, 2) == ""


def test_points_of_other_levels_and_of_other_guests_tell_nothing(history: History) -> None:
    history.add(2.0)
    history.add(50.0, level=ConsistencyLevel.PAUSED)
    history.add(50.0, level=ConsistencyLevel.CRASH)
    history.add(50.0, uuid=OTHER)
    history.add(0.0)
    assert "about 2.0 s" in history.why(1, 2)


def test_damaged_points_tell_nothing(history: History) -> None:
    history.add(2.0)
    history.add(50.0)
    newest = max(history.vault.rglob("manifest.json"), key=lambda path: path.parent.stat().st_mtime)
    newest.write_text("{")
    assert "about 2.0 s" in history.why(1, 2)


# -- what becomes of a guest whose pause would be too long


def limited(scene: Scene, mode: str) -> DumpedGuest:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    scene.change(limits=Limits(memory_max_pause_s=0.4))
    return guest


@pytest.mark.parametrize(
    ("mode", "level"),
    [
        ("memory", ConsistencyLevel.CRASH),
        ("memory,quiesced,crash", ConsistencyLevel.QUIESCED),
        ("memory,paused,crash", ConsistencyLevel.PAUSED),
    ],
)
def test_the_next_level_is_taken_with_that_reason(
    scene: Scene, caplog: pytest.LogCaptureFixture, mode: str, level: ConsistencyLevel
) -> None:
    guest = limited(scene, mode)
    assert scene.pre()  # such a guest cannot have more: that is no failure
    (entry,) = scene.entries()
    assert entry.level is level
    assert entry.reason and "limits.memory_max_pause_s is 0.4" in entry.reason
    assert level is ConsistencyLevel.CRASH or entry.reason in caplog.text
    assert level is ConsistencyLevel.PAUSED or "snapshot" not in guest.calls


def test_where_memory_is_required_there_is_no_point(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    limited(scene, "memory,required")
    assert not scene.pre()
    assert scene.entries() == []
    assert "memory_max_pause_s" in caplog.text


def test_what_is_done_to_old_points_makes_them_no_newer(history: History) -> None:
    """`verify` writes beside a point, a restore changes its manifest; a clock may be wrong."""
    for _ in range(6):
        history.add(40.0)
    for _ in range(5):
        history.add(2.0)
    points, _ = vault.all_in(history.vault)
    for point in points:
        (point.directory / "verify.json").touch()
        newer_s = 1_000_000 - point.manifest.snapshots[0].createtxg
        os.utime(point.directory, (newer_s, newer_s))
        if point.manifest.timing.pause_s == 40.0:
            os.utime(point.directory / DOMAIN_XML, (newer_s, newer_s))  # in 2031, for a day
    assert history.why(3, 2) == ""


def test_how_fast_ram_is_written(history: History, manifest: Build) -> None:
    """As fast as at best: what was slowed for others could have been faster."""

    def speed() -> float:
        return dump_bytes_per_s(history.vault, "web", UUID)

    assert speed() == 100 << 20
    memory = Memory("memory.img", "raw", "none", 400 << 20, 1, "0" * 64)
    history.add(1, memory=memory)  # nothing is known of its dump
    assert speed() == 100 << 20
    for dump_s in (20.0, 2.0, 8.0):
        history.add(1, dump_s=dump_s, memory=memory)
    assert speed() == 200 << 20
