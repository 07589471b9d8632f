"""A whole run of send: rsync and both vaults are real, ZFS and syncoid are tables in memory."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fakes.guest import UUID
from tests.fakes.host import FakeHost
from zvmsnap.common.errors import SyncoidFailed, ZfsFailed
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.points import vault
from zvmsnap.points.manifest import DOMAIN_XML, MEMORY, Disk, Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import send_status, syncoid, wait_idle
from zvmsnap.replication.syncoid import Options
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Dataset, Snapshot, SnapshotUsage, Subtree

Build = Callable[..., Manifest]
Run = Callable[..., tuple[int, str, str]]
RAM = bytes(range(256)) * 2000
ROOT = "usb/off"
WEB, DATA = "tank/web", "tank/web/data"


class World:
    """Snapshots, as (name, guid), of each dataset here and below the root there."""

    def __init__(self, vault_there: Path) -> None:
        self.here: dict[str, list[tuple[str, int]]] = {WEB: [], DATA: []}
        self.there: dict[str, list[tuple[str, int]]] = {ROOT: []}
        self.vault = str(vault_there)
        self.told: list[str] = []
        self.fails_at = ""
        self.lies = False
        self.unreachable = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zfs, "datasets", lambda: {n: Dataset(n, "volume", False) for n in self.here})
        patch.setattr(zfs, "subtree", self._branch)
        patch.setattr(zfs, "snapshot_usage", self._uses)
        patch.setattr(zfs, "stream_bytes", lambda *_, **__: 1000)
        patch.setattr(zfs, "properties", lambda *_: {"zvmsnap:vault": self.vault})
        patch.setattr(zfs, "create_folder", lambda name, _far: self.there.update({name: []}))
        for verb in ("rename", "clone", "promote"):
            patch.setattr(zfs, verb, self._telling(verb))
        patch.setattr(syncoid, "check", lambda _options: None)
        patch.setattr(syncoid, "run", self._syncoid)
        patch.setattr(wait_idle, "guests_on", lambda *_: [])

    def _telling(self, verb: str) -> Callable[..., None]:
        return lambda *words: self.told.append(" ".join([verb, *map(str, words[:-1])]))

    def _branch(self, root: str, _far: RemoteHost) -> Subtree:
        assert root == ROOT
        if self.unreachable:
            raise ZfsFailed("cannot open 'usb/off': dataset does not exist")
        found = [
            Snapshot(dataset, name, guid, guid)
            for dataset, each in self.there.items()
            for name, guid in each
        ]
        return Subtree(frozenset(self.there), {one.full_name: one for one in found})

    def _uses(self, names: Sequence[str]) -> list[SnapshotUsage]:
        return [
            SnapshotUsage(Snapshot(dataset, name, guid, guid), (), 0)
            for dataset in names
            for name, guid in self.here[dataset]
        ]

    def _syncoid(self, source: str, target: str, options: Options, *, readonly: bool) -> None:
        assert readonly
        self.told.append(f"syncoid {source} {target}")
        if source == self.fails_at:
            raise SyncoidFailed("out of space")
        if not self.lies:
            self.there[target] = list(self.here[source])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path / "there")
    found.install(monkeypatch)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Config:
    own = tmp_path / "own"
    return Config(vault=f"{own}/vault", journal=f"{own}/journal", locks=f"{own}/locks")


@pytest.fixture
def take(world: World, config: Config, manifest: Build) -> Callable[[int], RestorePoint]:
    """A moment: snapshots of both datasets, and a point with RAM."""

    def taken(hour: int) -> RestorePoint:
        name = f"h{hour}"
        ties = []
        for number, dataset in enumerate((WEB, DATA)):
            world.here[dataset].append((name, hour * 10 + number))
            ties.append(SnapshotRef(dataset, name, hour * 10 + number, 1))
        directory = config.vault_dir / "web" / name
        directory.mkdir(parents=True)
        (directory / MEMORY).write_bytes(RAM)
        (directory / DOMAIN_XML).write_text("<domain/>")
        sum_ = hashlib.sha256(RAM).hexdigest()
        made = manifest(
            run=name,
            capture=f"{UUID}.0000000{hour}",
            created=f"2026-11-20T0{hour}:00:00+00:00",
            snapshots=tuple(ties),
            disks=tuple(Disk("vda", "file", "raw", "/x", d, "x") for d in (WEB, DATA)),
            memory=Memory(MEMORY, "raw", "none", len(RAM), len(RAM), sum_),
        )
        found = RestorePoint(directory, made)
        vault.rewrite(found, made)
        return found

    return taken


@pytest.fixture
def run(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> Run:
    conf = tmp_path / "config.toml"
    text = "".join(f'{key} = "{getattr(config, key)}"\n' for key in ("vault", "journal", "locks"))
    conf.write_text(text)
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(conf))
    FakeHost().install(monkeypatch)
    return command


Take = Callable[[int], RestorePoint]


def lying(world: World) -> list[str]:
    """What lies in the vault there."""
    top = Path(world.vault)
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def files(*points: str) -> list[str]:
    """Of points, written with a + if their RAM is there too."""
    found = [".zvmsnap-vault"]
    for each in points:
        names = ["domain.xml", "manifest.json", *(["memory.img"] if each[-1] == "+" else [])]
        found += [f"web/{each.rstrip('+')}/{name}" for name in names]
    return found


SENT = [f"syncoid {dataset} {ROOT}/{dataset}" for dataset in (WEB, DATA)]


def test_first_and_then_what_is_new(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    code, out, _ = run("send", "web", ROOT)
    assert (code, world.told) == (0, SENT)
    assert out.splitlines() == [
        f"sent to {ROOT}:",
        "  tank/web@h2: all of it, 2.0K",
        "  tank/web/data@h2: all of it, 2.0K",
        "  point web@h1: without RAM",
        "  point web@h2: RAM 500K",
    ]
    assert lying(world) == files("h1", "h2+")
    assert list(world.there)[1:] == [f"{ROOT}/tank", f"{ROOT}/{WEB}", f"{ROOT}/{DATA}"]

    world.told.clear()
    code, out, _ = run("send", "--all", ROOT)
    assert (code, world.told) == (0, [])
    assert "is there" in out and "point" not in out

    take(3)
    code, out, _ = run("send", "--memory", "all", "web", ROOT)
    assert (code, world.told) == (0, SENT)
    assert lying(world) == files("h1+", "h2+", "h3+")
    assert "since h2" in out


def test_dry_run(world: World, take: Take, run: Run) -> None:
    take(1)
    code, out, _ = run("send", "--dry-run", "--json", "web", ROOT)
    said = json.loads(out)
    assert (code, said["dry_run"], world.told, lying(world)) == (0, True, [], [])
    ((load,),) = [each["loads"] for each in said["sent"]]
    assert [each["target"] for each in load["datasets"]] == [f"{ROOT}/{WEB}", f"{ROOT}/{DATA}"]
    assert load["points"] == [{"name": "web@h1", "memory_bytes": len(RAM)}]
    assert "would send" in run("send", "-n", "web", ROOT)[1]


def test_receipts_and_status(world: World, take: Take, run: Run, config: Config) -> None:
    take(1)
    assert "never sent" in run("status")[1]
    run("send", "web", ROOT)
    (found,) = send_status.read(config.journal_dir)
    assert (found.newest, found.newest_has_memory, found.error) == ("h1", True, "")
    assert [(each.newest, each.guid) for each in found.datasets] == [("h1", 10), ("h1", 11)]
    code, out, _ = run("status")
    assert code == 0 and out.splitlines()[1].split()[:3] == ["web", ROOT, "h1"]
    world.unreachable = True
    assert run("send", "web", ROOT)[0] == 1
    code, out, _ = run("status")
    assert code == 1 and "h1" in out and "FAILED: cannot open 'usb/off'" in out


def test_one_dataset_fails(world: World, take: Take, run: Run, config: Config) -> None:
    take(1)
    run("send", "web", ROOT)
    take(2)
    world.fails_at = DATA
    code, out, err = run("send", "web", ROOT)
    assert (code, "FAILED: out of space" in out, "out of space" in err) == (1, True, True)
    # What has arrived goes there; its RAM only when all disks have.
    assert lying(world) == files("h1+", "h2")
    (found,) = send_status.read(config.journal_dir)
    assert (found.newest, found.error) == ("h1", "out of space")
    world.fails_at = ""
    assert run("send", "web", ROOT)[0] == 0
    assert lying(world) == files("h1+", "h2+")


def test_syncoid_that_leaves_it_out(world: World, take: Take, run: Run) -> None:
    take(1)
    world.lies = True
    code, _, err = run("send", "web", ROOT)
    assert code == 1 and "is syncoid:sync set on tank/web?" in err
    assert lying(world) == files()


def test_what_the_destination_has_pruned(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    run("send", "web", ROOT)
    for dataset in (WEB, DATA):
        del world.there[f"{ROOT}/{dataset}"][0]
    code, _, err = run("send", "web", ROOT)
    assert code == 0 and "point web@h1 is gone" in err
    assert lying(world) == files("h2+")


def test_what_is_newer_there_is_set_aside(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    run("send", "web", ROOT)
    for dataset in (WEB, DATA):
        del world.here[dataset][1]
    world.told.clear()
    code, _, err = run("send", "web", ROOT)
    assert code == 0 and "they stay there, as usb/off/tank/web.before-" in err
    assert [each.split()[0] for each in world.told] == [
        *("rename", "clone", "promote", "clone", "promote")
    ]


def test_destinations_of_the_configuration(
    world: World, take: Take, run: Run, tmp_path: Path
) -> None:
    take(1)
    code, _, err = run("send")
    assert code == 1 and "[[destination]]" in err
    conf = tmp_path / "config.toml"
    tables = [f'target = "{ROOT}"\nmemory = "none"', f'target = "{ROOT}"\nguests = ["nix"]']
    before = conf.read_text()
    conf.write_text(before + "".join(f"[[destination]]\n{table}\n" for table in reversed(tables)))
    code, out, err = run("send")
    assert code == 1 and "nix: is no guest" in err
    assert "point web@h1: without RAM" in out
    assert lying(world) == files("h1")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["web"], 2),
        (["--all"], 2),
        (["--all", "web", ROOT], 2),
        (["nix", ROOT], 1),
        (["web", "-x:y"], 2),
        (["web", "$(id):y"], 2),
        (["--bwlimit", "fast", "web", ROOT], 2),
        (["--memory", "some", "web", ROOT], 2),
    ],
)
def test_usage(world: World, take: Take, run: Run, words: list[str], code: int) -> None:
    take(1)
    assert run("send", *words)[0] == code
    assert world.told == []


def test_list_remote(world: World, take: Take, run: Run) -> None:
    take(1)
    run("send", "web", ROOT)
    code, out, _ = run("list", "--remote", ROOT)
    assert code == 0 and len(out.splitlines()) == 2
    assert "h1" in out and "no snapshot" not in out
    world.there[f"{ROOT}/{WEB}"].clear()
    assert "its RAM fits none" in run("list", "--remote", ROOT, "web")[1]
    assert run("list", "--remote", ROOT, "db")[1] == "no points of db\n"


def test_a_guest_that_stays_on_its_overlay(
    world: World, take: Take, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.fakes.guest import FakeGuest

    take(1)
    conf = tmp_path / "config.toml"
    conf.write_text(conf.read_text() + "[limits]\nbusy_timeout_s = 0.01\n")
    monkeypatch.setattr(wait_idle, "guests_on", lambda *_: [FakeGuest("web", UUID)])
    monkeypatch.setattr(wait_idle, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(overlay_chain, "of_guest", lambda _guest: {"vda": object()})
    code, _, err = run("send", "web", ROOT)
    assert code == 1 and "its disk vda is on an overlay; zvmsnap recover web" in err
    assert world.told == [] and lying(world) == files()
