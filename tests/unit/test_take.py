import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.unit.fakes import OTHER, UUID, DumpedGuest, FakeHypervisor, make_base
from zvmsnap import (
    capture,
    finish,
    guard,
    hypervisor,
    leave,
    mounttable,
    staging,
    take,
    vault,
    zfs,
)
from zvmsnap.config import Config
from zvmsnap.errors import GuestNotFound, TakeFailed, TakeRefused, ZfsFailed
from zvmsnap.journal import Journal
from zvmsnap.levels import Level
from zvmsnap.point import Liveness, Point
from zvmsnap.zfs import Answer, Dataset, Snapshot, Use

NAME = "before-upgrade"
WEB, DB = "tank/web", "tank/db"


class Pool:
    """Two datasets, and the snapshots that are taken of them."""

    def __init__(self, root: Path) -> None:
        self.datasets = {name: Dataset(name, "filesystem", False) for name in (WEB, DB)}
        self.table = [mounttable.Mount(1, 0, "/", "/", "")]
        for number, name in enumerate(self.datasets, 2):
            self.table.append(mounttable.Mount(number, 1, "/", f"{root}/{name}", name))
        self.present: dict[str, Snapshot] = {}
        self.groups: dict[str, str] = {}
        self.fails_after = 99
        self.uses: dict[str, Use] = {}
        self.told: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zfs, "datasets", lambda: self.datasets)
        patch.setattr(mounttable, "mounts", lambda: self.table)
        patch.setattr(zfs, "snapshots", lambda names: self._answer(set(names)))
        patch.setattr(zfs, "all_snapshots", lambda: self._answer(set(self.present)))
        patch.setattr(zfs, "uses", self._uses)
        patch.setattr(zfs, "marked", self._marked)
        patch.setattr(zfs, "take_snapshots", self._take)
        patch.setattr(zfs, "destroy", self._destroy)
        patch.setattr(zfs, "hold", lambda names, tag: self.told.append(f"hold {tag} {names}"))

    def _marked(self, user_property: str, *, inherited: bool = False) -> Mapping[str, str]:
        assert user_property == "zvmsnap:group" and inherited
        return self.groups

    def _answer(self, names: set[str]) -> Answer:
        found = {name: self.present[name] for name in names & self.present.keys()}
        return Answer(found, frozenset({"tank"}))

    def _uses(self, datasets: list[str]) -> list[Use]:
        return [
            self.uses.get(each.full_name, Use(each, (), 0))
            for each in self.present.values()
            if each.dataset in datasets
        ]

    def _take(self, datasets: tuple[str, ...], name: str) -> None:
        for number, dataset in enumerate(datasets):
            if number == self.fails_after:
                raise ZfsFailed("out of space")
            self.present[f"{dataset}@{name}"] = Snapshot(dataset, name, 10 + number, 1)

    def _destroy(self, name: str) -> None:
        self.told.append(f"destroy {name}")
        del self.present[name]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    found = Pool(tmp_path)
    found.install(monkeypatch)
    return found


@pytest.fixture
def web(tmp_path: Path) -> DumpedGuest:
    return DumpedGuest("web", UUID, vda=make_base(tmp_path / WEB / "a.raw"))


@pytest.fixture
def db(tmp_path: Path) -> DumpedGuest:
    return DumpedGuest("db", OTHER, vda=make_base(tmp_path / DB / "a.raw"))


@pytest.fixture
def host(
    web: DumpedGuest, db: DumpedGuest, config: Config, monkeypatch: pytest.MonkeyPatch
) -> FakeHypervisor:
    found = FakeHypervisor(web, db)
    for room in (capture, finish, hypervisor):
        monkeypatch.setattr(room, "Hypervisor", found.connect)
    monkeypatch.setattr(guard, "arm", lambda *_: None)
    monkeypatch.setattr(guard, "ensure", lambda *_, **__: None)
    monkeypatch.setattr(leave, "_LOOK_EVERY_S", 0.001)
    # QEMU's user, who must pass through to the overlays, is no subject here.
    monkeypatch.setattr(staging, "check_usable", lambda *_: None)
    config.staging_dir.mkdir()
    return found


def both(config: Config, host: FakeHypervisor, hold: str | None = None) -> list[Point]:
    planned = take.plan(host, ["web", "db"], None, NAME)
    return take.take(config, planned, hold, threading.Event())


def assert_at_rest(config: Config, *guests: DumpedGuest) -> None:
    assert Journal(config.journal_dir).entries() == []
    assert list(config.staging_dir.iterdir()) == []
    for guest in guests:
        assert guest.live["vda"].endswith("/a.raw")


def test_two_guests_at_one_instant(
    pool: Pool, config: Config, host: FakeHypervisor, web: DumpedGuest, db: DumpedGuest
) -> None:
    found = both(config, host, hold="audit")
    assert sorted(point.name for point in found) == [f"db@{NAME}", f"web@{NAME}"]
    assert {point.manifest.level for point in found} == {Level.PAUSED}
    assert sorted(pool.present) == [f"{DB}@{NAME}", f"{WEB}@{NAME}"]
    assert pool.told == [f"hold audit ['{DB}@{NAME}', '{WEB}@{NAME}']"]
    for point in found:
        assert Liveness(pool.present, frozenset({"tank"})).complete_names(point.manifest) == [NAME]
    assert_at_rest(config, web, db)


def test_one_guest_fails_and_none_has_a_part(
    pool: Pool, config: Config, host: FakeHypervisor, web: DumpedGuest, db: DumpedGuest
) -> None:
    def fail() -> None:
        raise ZfsFailed("no")

    db.at["snapshot"] = fail
    with pytest.raises(TakeFailed, match="not every guest got what its disks allow"):
        both(config, host)
    assert pool.present == {} and vault.read(config) == ([], [])
    assert_at_rest(config, web, db)
    # Nothing is in the way of the next one.
    assert len(both(config, host)) == 2


def test_a_snapshot_fails_and_none_stays(
    pool: Pool, config: Config, host: FakeHypervisor, web: DumpedGuest, db: DumpedGuest
) -> None:
    pool.fails_after = 1
    with pytest.raises(TakeFailed, match="out of space"):
        both(config, host)
    assert pool.present == {} and pool.told == [f"destroy {DB}@{NAME}"]
    assert vault.read(config) == ([], [])
    assert_at_rest(config, web, db)


def test_interrupted(
    pool: Pool, config: Config, host: FakeHypervisor, web: DumpedGuest, db: DumpedGuest
) -> None:
    cancelled = threading.Event()
    web.at["snapshot"] = cancelled.set
    planned = take.plan(host, ["web", "db"], None, NAME)
    with pytest.raises(Exception, match="interrupted"):
        take.take(config, planned, None, cancelled)
    assert pool.present == {}
    assert_at_rest(config, web, db)


def test_a_guest_that_is_off(pool: Pool, config: Config, host: FakeHypervisor, db: DumpedGuest
                             ) -> None:  # fmt: skip
    db.active = False
    assert {point.manifest.level for point in both(config, host)} == {Level.PAUSED, Level.OFFLINE}


REFUSED = [
    pytest.param(["nix"], NAME, GuestNotFound, "nix: libvirt has no such guest", id="no guest"),
    pytest.param(["web"], "a/b", TakeRefused, "is no name of a snapshot", id="no name"),
    pytest.param(["web"], "there", TakeRefused, "tank/web@there: exists", id="name is taken"),
    pytest.param(["db"], NAME, TakeRefused, "db: has no disk on ZFS, or all", id="left out"),
]


@pytest.mark.parametrize(("domains", "name", "kind", "why"), REFUSED)
def test_refused(
    pool: Pool, host: FakeHypervisor, domains: list[str], name: str, kind: type, why: str
) -> None:
    pool.present[f"{WEB}@there"] = Snapshot(WEB, "there", 1, 1)
    pool.datasets[DB] = Dataset(DB, "filesystem", False, mode="off")
    with pytest.raises(kind, match=why):
        take.plan(host, domains, None, name)


def test_group(pool: Pool, host: FakeHypervisor) -> None:
    pool.groups = {WEB: "shop", DB: "else"}
    assert take.plan(host, [], "shop", NAME).domains == ("web",)
    pool.groups[DB] = "shop"
    assert take.plan(host, [], "shop", NAME).domains == ("db", "web")
    with pytest.raises(TakeRefused, match="zvmsnap:group=nix"):
        take.plan(host, [], "nix", NAME)


@pytest.fixture
def run(
    host: FakeHypervisor,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    conf = tmp_path / "config.toml"
    keys = ("staging", "vault", "journal", "locks")
    conf.write_text("".join(f'{key} = "{getattr(config, key)}"\n' for key in keys))
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(conf))
    return command


Run = Callable[..., tuple[int, str, str]]


def test_commands(run: Run, pool: Pool) -> None:
    code, out, _ = run("take", "--dry-run", "web", "--name", NAME)
    assert (code, out) == (0, f"would take {NAME} of web:\n  {WEB}\n")
    assert pool.present == {}
    code, out, _ = run("take", "--json", "web", "--name", NAME)
    assert code == 0
    assert json.loads(out)["points"] == [{"name": f"web@{NAME}", "level": "memory"}]
    assert run("take", "db")[1].startswith("db@zvmsnap_2")
    assert run("take")[0] == 2 and run("take", "--group", "x", "web")[0] == 2

    code, out, _ = run("drop", "--dry-run", f"web@{NAME}")
    assert (code, out) == (0, f"drop web@{NAME}:\n  destroy {WEB}@{NAME}\n")
    assert run("drop", f"web@{NAME}")[0] == 2  # nobody to ask
    assert run("drop", "--yes", f"web@{NAME}")[0] == 0
    assert f"{WEB}@{NAME}" not in pool.present
    assert run("list", "web")[1] == "no points of web\n"


def test_what_is_not_dropped(run: Run, pool: Pool) -> None:
    run("take", "web", "--name", NAME)
    full_name = f"{WEB}@{NAME}"
    for use, why in (
        (Use(pool.present[full_name], ("tank/look",), 0), "tank/look depends on it"),
        (Use(pool.present[full_name], (), 1), "is held"),
    ):
        pool.uses[full_name] = use
        code, _, err = run("drop", "--yes", f"web@{NAME}")
        assert code == 1 and why in err
    run("take", "web", "--name", "autosnap_2026-11-20_03:00:00_hourly")
    code, _, err = run("drop", "--yes", "web@autosnap_2026-11-20_03:00:00_hourly")
    assert code == 1 and "is sanoid's" in err
    assert len(pool.present) == 2
