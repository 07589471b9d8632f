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
from zvmsnap.zfs.types import Bookmark, Dataset, Snapshot, SnapshotUsage, Subtree

Build = Callable[..., Manifest]
UUIDS = {
    "web": "c0ffee00-0000-4000-8000-000000000001",
    "db": "c0ffee00-0000-4000-8000-000000000002",
}
DATASETS = ["t", "t/vm", "t/vm/web", "t/vm/web/data", "t/vm/db", "t/vm/db/log", "t/else"]
NAS = Destination("nas", "backup")


ASIDE = "t/vm/web.before-20261121T120000"


@pytest.fixture(autouse=True)
def existing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    datasets = {name: Dataset(name, "filesystem", False) for name in (*DATASETS, ASIDE)}
    monkeypatch.setattr(zfs, "datasets", lambda: datasets)

    def marked(name: str, *, inherited: bool) -> dict[str, str]:
        assert (name, inherited) == ("syncoid:sync", True)
        return {ASIDE: "false", "t/vm/web": "true"}

    monkeypatch.setattr(zfs, "marked", marked)
    return datasets


@pytest.fixture
def points(manifest: Build) -> list[RestorePoint]:
    def build(domain: str, hour: int, *datasets: str) -> RestorePoint:
        disks = tuple(Disk("vda", "file", "raw", "/x", each, "x") for each in datasets)
        created = f"2026-11-20T{hour:02}:00:00+00:00"
        return RestorePoint(
            Path("/v"), manifest(domain=domain, uuid=UUIDS[domain], created=created, disks=disks)
        )

    return [
        build("web", 1, "t/vm/web"),
        build("web", 2, "t/vm/web", "t/vm/web/data"),
        build("db", 1, "t/vm/db", "t/gone"),
        build("db", 2, "t/vm/db"),
    ]


WEB = SendUnit("web", UUIDS["web"], ("t/vm/web", "t/vm/web/data"))
DB = SendUnit("db", UUIDS["db"], ("t/vm/db",))

UNITS = [
    pytest.param(["web"], False, [WEB], id="a guest"),
    pytest.param(["db", "web"], False, [DB, WEB], id="guests"),
    pytest.param([], True, [DB, WEB], id="all guests"),
    pytest.param(["t/else"], False, [SendUnit("", "", ("t/else",))], id="a dataset of no guest"),
    pytest.param(["t/vm/web"], False, [WEB], id="the dataset of a guest"),
    pytest.param(
        ["t/vm/web/data"], False, [SendUnit("", "", ("t/vm/web/data",))], id="one of its two"
    ),
    pytest.param(
        ["t/vm"], False, [SendUnit("", "", ("t/vm", "t/vm/db/log")), DB, WEB], id="all below one"
    ),
]


@pytest.mark.parametrize(("names", "every", "expected"), UNITS)
def test_units(
    points: list[RestorePoint], names: list[str], every: bool, expected: list[SendUnit]
) -> None:
    assert send_plan.send_units(points, names, every=every) == expected


def test_two_guests_that_had_one_name(points: list[RestorePoint], manifest: Build) -> None:
    """Each has a unit of its own, and the renamed one has the name of its newest point."""

    def of(uuid: str, domain: str, hour: int, dataset: str) -> RestorePoint:
        disks = (Disk("vda", "file", "raw", "/x", dataset, "x"),)
        created = f"2026-11-20T{hour:02}:00:00+00:00"
        made = manifest(domain=domain, uuid=uuid, created=created, disks=disks)
        return RestorePoint(Path("/v"), made)

    old, other = "0ddba11" + UUIDS["web"][7:], "0ddba22" + UUIDS["web"][7:]
    mixed = [
        *points,
        of(old, "web", 1, "t/else"),
        of(other, "db", 1, "t/vm/db/log"),
        of(other, "web", 2, "t/vm/db/log"),
    ]
    units = [
        SendUnit("web", old, ("t/else",)),
        SendUnit("web", other, ("t/vm/db/log",)),
        WEB,
    ]
    assert send_plan.send_units(mixed, ["web"], every=False) == units
    assert send_plan.send_units(mixed, [], every=True) == [DB, *units]
    assert send_plan.send_units(mixed, ["db"], every=False) == [DB, units[1]]
    below = send_plan.send_units(mixed, ["t/vm/db"], every=False)
    assert below == [DB, units[1]]


def test_guest_whose_datasets_are_gone_keeps_no_other_from_being_sent(
    points: list[RestorePoint], existing: dict[str, Dataset]
) -> None:
    del existing["t/vm/db"]
    db, web = send_plan.send_units(points, [], every=True)
    assert (db.datasets, web) == ((), WEB)
    assert db.problem == "db: t/vm/db does not exist any more; was it renamed?"


def test_what_a_restore_has_set_aside_is_not_sent(points: list[RestorePoint]) -> None:
    with pytest.raises(SendRefused, match=f"{ASIDE}: syncoid:sync=false keeps it from being sent"):
        send_plan.send_units(points, [ASIDE], every=False)


def test_no_units(points: list[RestorePoint], existing: dict[str, Dataset]) -> None:
    with pytest.raises(SendRefused, match="nix: is no guest with points, and no dataset"):
        send_plan.send_units(points, ["nix"], every=False)
    with pytest.raises(SendRefused, match="no guest has a point yet"):
        send_plan.send_units([], [], every=True)
    del existing["t/vm/web/data"]
    with pytest.raises(SendRefused, match="t/vm/web/data does not exist any more"):
        send_plan.send_units(points, ["web"], every=False)


class LocalZfs:
    """Snapshots `name=guid` of t/vm/web, its bookmarks `#name=guid`, and sizes of streams."""

    def __init__(self, *own: str) -> None:
        self.own = [each for each in own if each[0] != "#"]
        self.marks = [each[1:] for each in own if each[0] == "#"]

    def snapshot_usage(self, datasets: Iterable[str]) -> list[SnapshotUsage]:
        return [SnapshotUsage(each, (), 0) for each in snapshots("t/vm/web", *self.own)]

    def bookmarks(self, datasets: Iterable[str]) -> list[Bookmark]:
        found = snapshots("t/vm/web", *self.marks)
        return [Bookmark(each.dataset, each.name, each.guid, each.createtxg) for each in found]

    def stream_bytes(self, newest: str, since: str = "", *, raw: bool = False) -> int:
        return 1000 if not since else 10 if not raw else 7


def snapshots(dataset: str, *pairs: str) -> list[Snapshot]:
    return [
        Snapshot(dataset, name, int(guid), int(guid))
        for name, guid in (pair.split("=") for pair in pairs)
    ]


def subtree(*pairs: str) -> Subtree:
    arrived = snapshots("backup/t/vm/web", *pairs)
    return Subtree(frozenset({"backup"}), {each.full_name: each for each in arrived})


SENDS = [
    pytest.param(["a=1"], [], ("", 1000, False, "a"), id="all of one"),
    pytest.param(["a=1", "b=2"], [], ("", 1010, False, "ab"), id="all of two"),
    pytest.param(["a=1", "b=2"], ["a=1"], ("a", 10, False, "b"), id="what is newer"),
    pytest.param(["b=2", "c=3"], ["a=1", "b=2"], ("b", 10, False, "c"), id="pruned here"),
    pytest.param(["a=1", "b=2"], ["b=2"], ("b", 0, False, ""), id="nothing"),
    pytest.param(["a=1", "b=2"], ["a=1", "x=9"], ("a", 10, True, "b"), id="diverged"),
    pytest.param(["a=1"], ["a=1", "x=9"], ("a", 0, True, ""), id="diverged, and nothing new"),
    pytest.param(
        ["a=1", "#m=2", "c=3", "d=4"], ["a=1", "b=2"], ("b", 20, False, "cd"), id="a bookmark"
    ),
    pytest.param(["a=1", "#m=2"], ["a=1", "b=2"], ("b", 0, False, ""), id="nothing new"),
    pytest.param(
        ["a=1", "#m=2", "c=3"], ["a=1", "b=2", "x=9"], ("b", 10, True, "c"), id="diverged from it"
    ),
    pytest.param(["b=2", "#m=2", "c=3"], ["b=2"], ("b", 10, False, "c"), id="and its snapshot"),
    pytest.param(["a=5"], ["a=1"], ("", 1000, False, "a"), id="another of the same name"),
]


@pytest.mark.parametrize(("local", "remote", "expected"), SENDS)
def test_dataset_send(
    monkeypatch: pytest.MonkeyPatch,
    local: list[str],
    remote: list[str],
    expected: tuple[str, int, bool, str],
) -> None:
    send = dataset_send(monkeypatch, local, remote)
    arriving = "".join(each.name for each in send.arriving)
    assert (send.since_name, send.size_bytes, send.diverged, arriving) == expected
    assert send.target == "backup/t/vm/web"
    assert send.is_empty == (arriving == "")


def dataset_send(
    monkeypatch: pytest.MonkeyPatch, local: list[str], remote: list[str], *, raw: bool = False
) -> DatasetSend:
    stand_in = LocalZfs(*local)
    monkeypatch.setattr(zfs, "snapshot_usage", stand_in.snapshot_usage)
    monkeypatch.setattr(zfs, "bookmarks", stand_in.bookmarks)
    monkeypatch.setattr(zfs, "stream_bytes", stand_in.stream_bytes)
    unit = SendUnit("web", UUIDS["web"], ("t/vm/web",))
    (send,) = send_plan.dataset_sends(unit, subtree(*remote), NAS, raw=raw)
    return send


def test_encrypted_datasets_are_sent_raw(
    monkeypatch: pytest.MonkeyPatch, existing: dict[str, Dataset]
) -> None:
    assert not dataset_send(monkeypatch, ["a=1"], []).raw
    assert dataset_send(monkeypatch, ["a=1"], [], raw=True).raw
    existing["t/vm/web"] = Dataset("t/vm/web", "filesystem", False, encrypted=True)
    send = dataset_send(monkeypatch, ["a=1", "b=2"], ["a=1"])
    assert send.raw and send.size_bytes == 7


def test_never_snapshotted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SendRefused, match="t/vm/web: has no snapshot yet"):
        dataset_send(monkeypatch, [], [])
