"""10 000 points and 100 000 snapshots: snapshots are listed once, and work grows as points do."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Container
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

import zvmsnap
from tests.fakes.guest import UUID
from tests.fakes.take_scene import configure
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.settings import Config
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import DOMAIN_XML, Disk, Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import transfer
from zvmsnap.retention import old_memory
from zvmsnap.retention.old_memory import Asked
from zvmsnap.watch import newest_points
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, SnapshotListing, Subtree

Build = Callable[..., Manifest]
Run = Callable[..., tuple[int, str, str]]
OWN_CODE = str(Path(zvmsnap.__file__).parent)
SNAPSHOTS_A_POINT = 10


class Lines:
    """How many lines of zvmsnap's own code were run, each turn of a loop or comprehension too."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call" and not frame.f_code.co_filename.startswith(OWN_CODE):
            return None
        self.count += event == "line"
        return self


@contextmanager
def counted() -> Any:
    lines, before = Lines(), sys.gettrace()
    sys.settrace(lines)
    try:
        yield lines
    finally:
        sys.settrace(before)


def listed_snapshots(points: int, root: str = "tank") -> list[Snapshot]:
    """Those of the points have the first guids; of the others none belongs to any."""
    return [
        Snapshot(f"{root}/web", f"s{guid}", guid, guid)
        for guid in range(points * SNAPSHOTS_A_POINT)
    ]


def manifests(manifest: Build, count: int) -> list[Manifest]:
    return [
        manifest(
            run=f"s{number}",
            capture=f"{UUID}.{number:08x}",
            memory=None,
            snapshots=(SnapshotRef("tank/web", f"s{number}", number, number),),
            disks=(Disk("vda", "file", "raw", "/x", "tank/web", "x"),),
        )
        for number in range(count)
    ]


@pytest.fixture
def lines_of(
    tmp_path: Path,
    config: Config,
    manifest: Build,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Runs a command with so many more points; returns lines run, and checks the listings."""
    configure(tmp_path, config, monkeypatch)
    asked: list[object] = []

    def run(count: int, *words: str) -> int:
        for built in manifests(manifest, count):
            vault.publish(vault.incoming(config.vault_dir, built.domain, built.capture), built)
        existing = listed_snapshots(count)

        def all_snapshots(guids: Container[int] | None = None) -> SnapshotListing:
            asked.append(guids)
            wanted = [each for each in existing if guids is None or each.guid in guids]
            return SnapshotListing(wanted, {"tank": 70}, {"tank/web": 5})

        monkeypatch.setattr(zfs, "all_snapshots", all_snapshots)
        asked.clear()
        with counted() as lines:
            command(*words)
        assert len(asked) == 1
        for point in vault.read(config)[0]:
            vault.remove(point)
        return int(lines.count)

    return run


@pytest.mark.parametrize("words", [("list",), ("prune", "--dry-run"), ("verify",)], ids=str)
def test_a_command_lists_once_and_grows_as_points_do(
    lines_of: Callable[..., int], words: tuple[str, ...]
) -> None:
    lines_of(1, *words)  # what is imported and made but once
    none, some, twice = (lines_of(count, *words) for count in (1, 31, 61))
    assert twice - none < 2.2 * (some - none)


def test_a_point_costs_one_file(
    config: Config, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list opens one file for each point, and asks for two more; monitor asks for its time."""

    def asked(work: Callable[[], object], count: int) -> Counter[str]:
        for built in manifests(manifest, count):
            incoming = vault.incoming(config.vault_dir, built.domain, built.capture)
            (incoming / DOMAIN_XML).write_text("<domain/>")
            vault.publish(incoming, built)
        counts: Counter[str] = Counter()
        with monkeypatch.context() as patch:
            for name in ("open", "stat", "lstat", "access", "listdir", "scandir", "readlink"):
                patch.setattr(os, name, partial(_counted, counts, name, getattr(os, name)))
            work()
        for point in vault.read(config)[0]:
            vault.remove(point)
        return counts

    def list_all() -> None:
        points, _ = vault.read(config)
        assert [verify_result.read(point) for point in points] == [None] * len(points)

    def monitor() -> None:
        assert len(newest_points.of_all(config.vault_dir)) == 1

    assert asked(list_all, 31) - asked(list_all, 11) == {"open": 20, "access": 40}
    assert asked(monitor, 31) - asked(monitor, 11) == {"lstat": 20, "access": 40}


def _counted(
    counts: Counter[str], name: str, really: Callable[..., Any], *given: Any, **options: Any
) -> Any:
    counts[name] += 1
    return really(*given, **options)


def test_planning_a_send_grows_as_points_do(manifest: Build) -> None:
    """The destination has all points already, and one is looked at after the other."""
    there = Destination("usb", "usb/off")

    def lines(count: int) -> int:
        own = [RestorePoint(Path("/v/web") / each.run, each) for each in manifests(manifest, count)]
        snapshots = listed_snapshots(count, "usb/off/tank")
        subtree = Subtree(
            frozenset({"usb/off/tank/web"}), {each.full_name: each for each in snapshots}
        )
        arrived = transfer.plan(own, [], there, subtree, MemoryWanted.NONE)
        remote = [RestorePoint(Path("/r/web") / each.name, each.manifest) for each in arrived]
        assert len(remote) == count
        with counted() as counter:
            assert transfer.plan(own, remote, there, subtree, MemoryWanted.NONE) == []
            assert transfer.pruned(remote, there, subtree) == []
        return int(counter.count)

    none, some, twice = (lines(count) for count in (1, 31, 61))
    assert twice - none < 2.2 * (some - none)


def test_whose_ram_goes_grows_as_points_do(
    config: Config, manifest: Build, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one guest, which asks for types of their own; all that ZFS is asked is asked once."""
    pools.present = {"tank/web@a": 1}
    pools.properties = [
        ("tank", f"zvmsnap:keep-memory:{kind}", "9") for kind in ("daily", "manual")
    ]
    ram = Memory("memory.img", "raw", "none", 4, 4, "00")
    asked: list[object] = []

    def noted(verb: Callable[..., Any]) -> Callable[..., Any]:
        def asking(*words: Any) -> Any:
            asked.append(words)
            return verb(*words)

        return asking

    for name in ("properties_of", "snapshot_usage"):
        monkeypatch.setattr(zfs, name, noted(getattr(pools, name)))

    def lines(count: int) -> int:
        own = [
            RestorePoint(Path("/v/web") / each.run, msgspec.structs.replace(each, memory=ram))
            for each in manifests(manifest, count)
        ]
        asked.clear()
        with counted() as counter:
            going = old_memory.find(config, own, Asked.of_all(config))
        assert (len(going), len(asked)) == (max(0, count - 9), 2 if count > 9 else 1)
        return int(counter.count)

    few, some, twice = (lines(count) for count in (10, 40, 70))
    assert twice - few < 2.2 * (some - few)
