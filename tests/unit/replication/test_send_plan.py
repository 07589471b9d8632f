from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from zvmsnap.common.errors import SendRefused
from zvmsnap.config.destination import Destination
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import send_plan
from zvmsnap.replication.send_plan import DatasetSend, SendUnit
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Dataset, Snapshot, SnapshotUsage, Subtree

Build = Callable[..., Manifest]
UUIDS = {
    "web": "c0ffee00-0000-4000-8000-000000000001",
    "db": "c0ffee00-0000-4000-8000-000000000002",
}
DATASETS = ["t", "t/vm", "t/vm/web", "t/vm/web/data", "t/vm/db", "t/vm/db/log", "t/else"]
NAS = Destination("nas", "far")


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    found = {name: Dataset(name, "filesystem", False) for name in DATASETS}
    monkeypatch.setattr(zfs, "datasets", lambda: found)
    return found


@pytest.fixture
def points(manifest: Build) -> list[RestorePoint]:
    def build(domain: str, hour: int, *datasets: str) -> RestorePoint:
        disks = tuple(Disk("vda", "file", "raw", "/x", each, "x") for each in datasets)
        taken = f"2026-11-20T{hour:02}:00:00+00:00"
        return RestorePoint(
            Path("/v"), manifest(domain=domain, uuid=UUIDS[domain], created=taken, disks=disks)
        )

    return [
        build("web", 1, "t/vm/web"),
        build("web", 2, "t/vm/web", "t/vm/web/data"),
        build("db", 1, "t/vm/db", "t/gone"),
        build("db", 2, "t/vm/db"),
    ]


WEB = SendUnit("web", UUIDS["web"], ("t/vm/web", "t/vm/web/data"))
DB = SendUnit("db", UUIDS["db"], ("t/vm/db",))

LOADS = [
    pytest.param(["web"], False, [WEB], id="a guest"),
    pytest.param(["db", "web"], False, [DB, WEB], id="guests"),
    pytest.param([], True, [DB, WEB], id="all guests"),
    pytest.param(["t/else"], False, [SendUnit("", "", ("t/else",))], id="a dataset of nobody"),
    pytest.param(["t/vm/web"], False, [WEB], id="the dataset of a guest"),
    pytest.param(
        ["t/vm/web/data"], False, [SendUnit("", "", ("t/vm/web/data",))], id="one of its two"
    ),
    pytest.param(
        ["t/vm"], False, [SendUnit("", "", ("t/vm", "t/vm/db/log")), DB, WEB], id="all below one"
    ),
]


@pytest.mark.parametrize(("names", "every", "expected"), LOADS)
def test_loads(
    points: list[RestorePoint], names: list[str], every: bool, expected: list[SendUnit]
) -> None:
    assert send_plan.send_units(points, names, every=every) == expected


def test_no_loads(points: list[RestorePoint], there: dict[str, Dataset]) -> None:
    with pytest.raises(SendRefused, match="nix: is no guest with points, and no dataset"):
        send_plan.send_units(points, ["nix"], every=False)
    with pytest.raises(SendRefused, match="no guest has a point yet"):
        send_plan.send_units([], [], every=True)
    del there["t/vm/web/data"]
    with pytest.raises(SendRefused, match="t/vm/web/data is not there any more"):
        send_plan.send_units(points, ["web"], every=False)


class Here:
    """Snapshots `name=guid` of the dataset t/vm/web, and what ZFS tells of streams."""

    def __init__(self, *snapshots: str) -> None:
        self.own = list(snapshots)

    def snapshot_usage(self, datasets: Iterable[str]) -> list[SnapshotUsage]:
        return [SnapshotUsage(found, (), 0) for found in taken("t/vm/web", *self.own)]

    def stream_bytes(self, newest: str, since: str = "", *, raw: bool = False) -> int:
        return 1000 if not since else 10 if not raw else 7


def taken(dataset: str, *snapshots: str) -> list[Snapshot]:
    pairs = [each.split("=") for each in snapshots]
    return [Snapshot(dataset, name, int(guid), int(guid)) for name, guid in pairs]


def branch(*snapshots: str) -> Subtree:
    found = taken("far/t/vm/web", *snapshots)
    return Subtree(frozenset({"far"}), {each.full_name: each for each in found})


STREAMS = [
    pytest.param(["a=1"], [], ("", 1000, False, "a"), id="all of one"),
    pytest.param(["a=1", "b=2"], [], ("", 1010, False, "ab"), id="all of two"),
    pytest.param(["a=1", "b=2"], ["a=1"], ("a", 10, False, "b"), id="what is newer"),
    pytest.param(["b=2", "c=3"], ["a=1", "b=2"], ("b", 10, False, "c"), id="pruned here"),
    pytest.param(["a=1", "b=2"], ["b=2"], ("b", 0, False, ""), id="nothing"),
    pytest.param(["a=1", "b=2"], ["a=1", "x=9"], ("a", 10, True, "b"), id="went another way"),
    pytest.param(["a=1"], ["a=1", "x=9"], ("a", 0, True, ""), id="went on alone"),
    pytest.param(["a=5"], ["a=1"], ("", 1000, False, "a"), id="another of the same name"),
]


@pytest.mark.parametrize(("here", "far", "expected"), STREAMS)
def test_stream(
    monkeypatch: pytest.MonkeyPatch,
    here: list[str],
    far: list[str],
    expected: tuple[str, int, bool, str],
) -> None:
    found = stream(monkeypatch, here, far)
    arriving = "".join(each.name for each in found.arriving)
    since = found.since.partition("@")[2]
    assert (since, found.size_bytes, found.diverged, arriving) == expected
    assert found.target == "far/t/vm/web"
    assert found.is_empty == (arriving == "")


def stream(
    monkeypatch: pytest.MonkeyPatch, here: list[str], far: list[str], *, raw: bool = False
) -> DatasetSend:
    stand_in = Here(*here)
    monkeypatch.setattr(zfs, "snapshot_usage", stand_in.snapshot_usage)
    monkeypatch.setattr(zfs, "stream_bytes", stand_in.stream_bytes)
    load = SendUnit("web", UUIDS["web"], ("t/vm/web",))
    (found,) = send_plan.dataset_sends(load, branch(*far), NAS, raw=raw)
    return found


def test_encrypted_datasets_are_sent_raw(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, Dataset]
) -> None:
    assert not stream(monkeypatch, ["a=1"], []).raw
    assert stream(monkeypatch, ["a=1"], [], raw=True).raw
    there["t/vm/web"] = Dataset("t/vm/web", "filesystem", False, encrypted=True)
    found = stream(monkeypatch, ["a=1", "b=2"], ["a=1"])
    assert found.raw and found.size_bytes == 7


def test_never_snapshotted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SendRefused, match="t/vm/web: has no snapshot yet"):
        stream(monkeypatch, [], [])
