"""A whole run of send: rsync and both vaults are real, ZFS and syncoid are tables in memory."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from zvmsnap.common.errors import LockTimeout, SyncoidFailed, ZfsFailed
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.points import vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MEMORY,
    Disk,
    Manifest,
    Memory,
    SnapshotRef,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.ram.page_image import PAGES, REST
from zvmsnap.replication import send_status, syncoid, wait_idle
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.syncoid import SyncoidOptions
from zvmsnap.replication.transfer import PointTransfer
from zvmsnap.zfs import marks, zfs
from zvmsnap.zfs.types import Bookmark, Dataset, Snapshot, SnapshotUsage, Subtree

Build = Callable[..., Manifest]
Run = Callable[..., tuple[int, str, str]]
RAM = bytes(range(256)) * 2000
ROOT = "usb/off"
WEB, DATA = "tank/web", "tank/web/data"


class World:
    """Snapshots, as (name, guid), of each dataset of this host and of the destination."""

    def __init__(self, remote_vault: Path) -> None:
        self.local: dict[str, list[tuple[str, int]]] = {WEB: [], DATA: []}
        self.remote: dict[str, list[tuple[str, int]]] = {ROOT: []}
        self.vault = str(remote_vault)
        self.calls: list[str] = []
        self.fails_at = ""
        self.lies = False
        self.unreachable = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zfs, "datasets", lambda: {n: Dataset(n, "volume", False) for n in self.local})
        patch.setattr(zfs, "subtree", self._subtree)
        patch.setattr(zfs, "snapshot_usage", self._usage)
        patch.setattr(zfs, "stream_bytes", lambda *_, **__: 1000)
        patch.setattr(zfs, "properties", lambda *_: {"zvmsnap:vault": self.vault})
        patch.setattr(zfs, "create_folder", lambda name, _remote: self.remote.update({name: []}))
        for verb in ("rename", "clone", "promote"):
            patch.setattr(zfs, verb, self._noting(verb))
        patch.setattr(syncoid, "check", lambda _options: None)
        patch.setattr(syncoid, "run", self._syncoid)
        patch.setattr(wait_idle, "guests_on", lambda *_: [])
        # Not of these tests: see test_nightly.
        patch.setattr(zfs, "bookmarks", lambda *_: [])
        patch.setattr(zfs, "held_snapshots", lambda: [])
        patch.setattr(marks, "hold", lambda *_: set())
        for verb in ("bookmark", "destroy_bookmarks", "release"):
            patch.setattr(marks, verb, lambda *_: None)

    def _noting(self, verb: str) -> Callable[..., None]:
        return lambda *words: self.calls.append(" ".join([verb, *map(str, words[:-1])]))

    def _subtree(self, root: str, _remote: RemoteHost) -> Subtree:
        assert root == ROOT
        if self.unreachable:
            raise ZfsFailed("cannot open 'usb/off': dataset does not exist")
        snapshots = [
            Snapshot(dataset, name, guid, guid)
            for dataset, each in self.remote.items()
            for name, guid in each
        ]
        return Subtree(frozenset(self.remote), {one.full_name: one for one in snapshots})

    def _usage(self, names: Sequence[str]) -> list[SnapshotUsage]:
        return [
            SnapshotUsage(Snapshot(dataset, name, guid, guid), (), 0)
            for dataset in names
            for name, guid in self.local[dataset]
        ]

    def _syncoid(
        self, source: str, target: str, options: SyncoidOptions, *, readonly: bool
    ) -> None:
        assert readonly
        self.calls.append(f"syncoid {source} {target}")
        if source == self.fails_at:
            raise SyncoidFailed("out of space")
        if not self.lies:
            self.remote[target] = list(self.local[source])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "remote")
    world.install(monkeypatch)
    return world


@pytest.fixture
def take(world: World, config: Config, manifest: Build) -> Callable[[int], RestorePoint]:
    """A snapshot run: snapshots of both datasets, and a point with RAM."""

    def taken(hour: int) -> RestorePoint:
        name = f"h{hour}"
        refs = []
        for number, dataset in enumerate((WEB, DATA)):
            world.local[dataset].append((name, hour * 10 + number))
            refs.append(SnapshotRef(dataset, name, hour * 10 + number, 1))
        directory = config.vault_dir / "web" / name
        directory.mkdir(parents=True)
        (directory / MEMORY).write_bytes(RAM)
        (directory / DOMAIN_XML).write_text("<domain/>")
        digest = hashlib.sha256(RAM).hexdigest()
        own = manifest(
            run=name,
            capture=f"{UUID}.0000000{hour}",
            created=f"2026-11-20T0{hour}:00:00+00:00",
            snapshots=tuple(refs),
            disks=tuple(Disk("vda", "file", "raw", "/x", d, "x") for d in (WEB, DATA)),
            memory=Memory(MEMORY, "raw", "none", len(RAM), len(RAM), digest),
        )
        point = RestorePoint(directory, own)
        vault.rewrite(point, own)
        return point

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


def remote_files(world: World) -> list[str]:
    """The files in the vault of the destination."""
    top = Path(world.vault)
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def files(*points: str) -> list[str]:
    """The files of a vault with these points, written with a + if they have RAM."""
    paths = [".zvmsnap-vault"]
    for each in points:
        names = ["domain.xml", "manifest.json", *(["memory.img"] if each[-1] == "+" else [])]
        paths += [f"web/{each.rstrip('+')}/{name}" for name in names]
    return paths


SENT = [f"syncoid {dataset} {ROOT}/{dataset}" for dataset in (WEB, DATA)]


def test_everything_and_after_that_what_is_new(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    code, out, _ = run("send", "web", ROOT)
    assert (code, world.calls) == (0, SENT)
    *lines, transferred = out.splitlines()
    assert lines == [
        f"sent to {ROOT}:",
        "  tank/web@h2: all of it, 2.0K",
        "  tank/web/data@h2: all of it, 2.0K",
        "  point web@h1: without RAM",
        "  point web@h2: RAM 500K",
    ]
    assert re.fullmatch(r"  transferred for points: 50\dK", transferred)
    assert remote_files(world) == files("h1", "h2+")
    assert list(world.remote)[1:] == [f"{ROOT}/tank", f"{ROOT}/{WEB}", f"{ROOT}/{DATA}"]

    world.calls.clear()
    code, out, _ = run("send", "--all", ROOT)
    assert (code, world.calls) == (0, [])
    assert "has arrived already" in out and "point" not in out

    take(3)
    code, out, _ = run("send", "--memory", "all", "web", ROOT)
    assert (code, world.calls) == (0, SENT)
    assert remote_files(world) == files("h1+", "h2+", "h3+")
    assert "since h2" in out


def test_ram_is_sent_as_what_differs_from_the_newest_that_has_arrived(
    world: World, take: Take, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: dict[str, str | None] = {}

    def put(_: RemoteVault, each: PointTransfer, *, bwlimit: str, base: RestorePoint | None) -> int:
        bases[each.name] = base.directory.name if base else None
        return 0

    monkeypatch.setattr(RemoteVault, "put", put)
    for hour in (1, 2, 3, 4):
        point = take(hour)
        memory = point.manifest.memory
        assert memory
        if hour != 2:  # that one is a plain image
            memory = msgspec.structs.replace(memory, file=PAGES, rest_file=REST)
        # In the sequence of their transaction groups, not of the clock.
        refs = [msgspec.structs.replace(r, createtxg=hour) for r in point.manifest.snapshots]
        own = msgspec.structs.replace(point.manifest, memory=memory, snapshots=tuple(refs))
        vault.rewrite(point, own)
    run("send", "--memory", "all", "web", ROOT)
    assert bases == {"h1": None, "h2": "h1", "h3": "h1", "h4": "h3"}


@pytest.mark.parametrize("when", ["before", "midway"])
def test_point_that_is_removed_meanwhile_is_left_out(
    world: World, take: Take, run: Run, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    pruned = take(1)
    take(2)
    verb = "put" if when == "before" else "_verify"
    real = getattr(RemoteVault, verb)

    def overtaken(own: RemoteVault, *words: Any, **options: Any) -> Any:
        vault.remove(pruned)
        return real(own, *words, **options)

    monkeypatch.setattr(RemoteVault, verb, overtaken)
    code, out, err = run("send", "web", ROOT)
    assert (code, remote_files(world)[-3:]) == (0, files("h2+")[-3:])
    if when == "before":
        assert "point web@h1 was removed meanwhile, and is not sent" in err
        assert "point web@h1" not in out


@pytest.mark.parametrize("when", ["before", "in time"])
def test_ram_that_is_removed_while_it_is_sent(
    world: World, take: Take, run: Run, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """keep-memory waits for no destination; a file that is open is read to its end."""
    take(1)
    point = take(2)
    real = RemoteVault._send

    def overtaken(own: RemoteVault, paths: list[Path], *words: Any) -> Any:
        if paths[0].name != MEMORY:
            return real(own, paths, *words)
        if when == "in time":
            real(own, paths, *words)
        vault.rewrite(point, point.manifest.without_memory("RAM removed by keep-memory"))
        vault.remove_files(point.directory, [MEMORY])
        return 1 if when == "in time" else real(own, paths, *words)

    monkeypatch.setattr(RemoteVault, "_send", overtaken)
    code, out, err = run("send", "web", ROOT)
    has_arrived = when == "in time"
    assert (code, remote_files(world)) == (0, files("h1", "h2+" if has_arrived else "h2"))
    assert ("point web@h2's RAM was removed meanwhile, and is not sent" in err) is not has_arrived
    assert ("point web@h2: without RAM" in out) is not has_arrived


def configured(conf: Path, memory: str, keep: str) -> None:
    before = conf.read_text().partition("[[")[0]
    table = f'[[destination]]\ntarget = "{ROOT}"\nmemory = "{memory}"\nkeep_memory = {keep}\n'
    conf.write_text(before + table)


def test_how_long_ram_is_kept_there(world: World, take: Take, run: Run, tmp_path: Path) -> None:
    conf = tmp_path / "config.toml"
    for hour in (1, 2, 3):
        take(hour)
        configured(conf, "latest", '"all"')
        assert run("send")[0] == 0
    assert remote_files(world) == files("h1+", "h2+", "h3+")
    configured(conf, "latest", "2")
    take(4)
    for words in (["--dry-run"], []):
        code, out, _ = run("send", *words)
        removed = "would remove" if words else "removed"
        lines = [f"  {removed} RAM of point web@h{number} there" for number in (1, 2)]
        assert (code, [line for line in out.splitlines() if "remove" in line]) == (0, lines)
    assert remote_files(world) == files("h1", "h2", "h3+", "h4+")
    # Another guest's points there, and a send that is told its destination, remove none.
    assert run("send", "web", ROOT)[0] == 0
    configured(conf, "all", "1")
    take(5)
    code, out, _ = run("send", "--json")
    ((unit,),) = [each["units"] for each in json.loads(out)["sent"]]
    assert unit["memory_removed"] == ["web@h3", "web@h4"]
    assert remote_files(world) == files("h1", "h2", "h3", "h4", "h5+")
    stray = Path(world.vault) / "web/h1" / MEMORY
    stray.write_bytes(b"left over")
    assert run("send")[0] == 0
    assert not stray.exists()


def test_ram_there_stays_if_something_has_failed(
    world: World, take: Take, run: Run, tmp_path: Path
) -> None:
    take(1)
    take(2)
    conf = tmp_path / "config.toml"
    configured(conf, "all", '"all"')
    assert run("send")[0] == 0
    configured(conf, "all", "1")
    take(3)
    world.fails_at = DATA
    assert run("send")[0] == 1
    assert remote_files(world) == files("h1+", "h2+", "h3+")  # of h3 not all disks have arrived
    world.fails_at = ""
    assert run("send")[0] == 0
    assert remote_files(world) == files("h1", "h2", "h3+")


def test_dry_run(world: World, take: Take, run: Run) -> None:
    take(1)
    code, out, _ = run("send", "--dry-run", "--json", "web", ROOT)
    printed = json.loads(out)
    assert (code, printed["dry_run"], world.calls, remote_files(world)) == (0, True, [], [])
    ((unit,),) = [each["units"] for each in printed["sent"]]
    assert [each["target"] for each in unit["datasets"]] == [f"{ROOT}/{WEB}", f"{ROOT}/{DATA}"]
    assert unit["points"] == [{"name": "web@h1", "memory_bytes": len(RAM)}]
    assert (unit["domain"], unit["error"]) == ("web", "")
    assert "would send" in run("send", "-n", "web", ROOT)[1]


def test_status(world: World, take: Take, run: Run, config: Config) -> None:
    take(1)
    assert "never sent" in run("status")[1]
    run("send", "web", ROOT)
    ((status,), _) = send_status.read_all(config.journal_dir)
    assert (status.newest, status.newest_has_memory, status.error) == ("h1", True, "")
    assert [(each.newest, each.guid) for each in status.datasets] == [("h1", 10), ("h1", 11)]
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
    # Points of which a disk has arrived are sent, their RAM only when all disks have arrived.
    assert remote_files(world) == files("h1+", "h2")
    ((status,), _) = send_status.read_all(config.journal_dir)
    assert (status.newest, status.error) == ("h1", "out of space")
    world.fails_at = ""
    assert run("send", "web", ROOT)[0] == 0
    assert remote_files(world) == files("h1+", "h2+")


def test_what_nobody_foresaw_of_one_dataset_is_one_line(
    world: World, take: Take, run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(1)

    def fail(*_arguments: object, **_named: object) -> None:
        raise KeyError("vda")

    monkeypatch.setattr(syncoid, "run", fail)
    code, out, err = run("send", "web", ROOT)
    assert (code, "FAILED: KeyError at test_send.py:" in out) == (1, True)
    assert "KeyError at test_send.py:" in err
    ((status,), _) = send_status.read_all(config.journal_dir)
    assert status.error.endswith(": 'vda'")


def test_syncoid_that_skips_a_dataset(world: World, take: Take, run: Run) -> None:
    take(1)
    world.lies = True
    code, _, err = run("send", "web", ROOT)
    assert code == 1 and "is syncoid:sync set on tank/web?" in err
    assert remote_files(world) == files()


def test_points_that_the_destination_has_pruned(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    run("send", "web", ROOT)
    for dataset in (WEB, DATA):
        del world.remote[f"{ROOT}/{dataset}"][0]
    code, _, err = run("send", "web", ROOT)
    assert code == 0 and "point web@h1 is gone there" in err
    assert remote_files(world) == files("h2+")


def test_newer_snapshots_of_the_destination_are_kept(world: World, take: Take, run: Run) -> None:
    take(1)
    take(2)
    run("send", "web", ROOT)
    for dataset in (WEB, DATA):
        del world.local[dataset][1]
    world.calls.clear()
    code, _, err = run("send", "web", ROOT)
    assert code == 0 and "they are kept, as usb/off/tank/web.before-" in err
    assert [each.split()[0] for each in world.calls] == [
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
    assert remote_files(world) == files("h1")


@pytest.mark.skipif(not shutil.which("age-keygen"), reason="apt install age")
def test_what_is_encrypted_is_so_by_hand_too(
    world: World, take: Take, run: Run, tmp_path: Path
) -> None:
    """The configuration says it for the destination, whoever names that."""
    take(1)
    assert run("send", "web", ROOT)[0] == 0
    take(2)
    conf = tmp_path / "config.toml"
    done = subprocess.run(["age-keygen"], capture_output=True, check=True)
    (tmp_path / "team").write_text(done.stderr.decode().split()[-1])
    table = f'[[destination]]\ntarget = "{ROOT}"\nrecipients_file = "{tmp_path}/team"\n'
    conf.write_text(conf.read_text() + table)
    code, _, err = run("send", "web", ROOT)
    # These RAM images are none that libvirt would load, and are looked at before.
    assert code == 1 and "h2" in err
    code, out, err = run("send", "--memory", "none", "web", ROOT)
    assert (code, err.count("FAILED")) == (0, 0), (out, err)
    sent = [path for path in remote_files(world) if path.startswith("web/h2")]
    assert sent == ["web/h2/manifest.json", "web/h2/point.tar.zst.age"]
    code, out, _ = run("status")
    assert f"{ROOT}: has points that are not encrypted: web@h1; they were sent before" in out
    assert re.search(r"^web +h2 .* crash ", run("list", "--remote", ROOT)[1], re.M)


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
    assert world.calls == []


def test_list_remote(world: World, take: Take, run: Run) -> None:
    take(1)
    run("send", "web", ROOT)
    code, out, _ = run("list", "--remote", ROOT)
    assert code == 0 and len(out.splitlines()) == 2
    assert "h1" in out and "no snapshot" not in out
    world.remote[f"{ROOT}/{WEB}"].clear()
    assert "its RAM fits none" in run("list", "--remote", ROOT, "web")[1]
    assert run("list", "--remote", ROOT, "db")[1] == "no points of db\n"


def test_guest_that_stays_on_its_overlay(
    world: World, take: Take, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    take(1)
    conf = tmp_path / "config.toml"
    conf.write_text(conf.read_text() + "[limits]\nbusy_timeout_s = 30\n")
    monkeypatch.setattr(wait_idle, "guests_on", lambda *_: [FakeGuest("web", UUID)])
    monkeypatch.setattr(overlay_chain, "of_guest", lambda _guest: {"vda": object()})
    code, _, err = run("send", "web", ROOT)
    assert code == 1 and "its disk vda is on an overlay; zvmsnap recover web" in err
    assert world.calls == [] and remote_files(world) == files()


def test_status_says_what_cannot_be_read_and_who_is_silent(
    world: World, take: Take, run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(1)
    run("send", "web", ROOT)
    ((status,), _) = send_status.read_all(config.journal_dir)
    code, out, _ = run("status")
    assert (code, len(out.splitlines())) == (0, 2 if "old; if" not in out else 3)
    old = msgspec.structs.replace(status, newest_created="2026-01-01T00:00:00+00:00")
    send_status.write(config.journal_dir, old)
    monkeypatch.setattr(zfs, "held_snapshots", lambda: ["tank/web@a", "tank/web@b"])
    tags = {"tank/web@a": {f"zvmsnap send to {ROOT}", "own"}, "tank/web@b": {"own"}}
    monkeypatch.setattr(marks, "tags", tags.__getitem__)
    code, out, _ = run("status")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{ROOT}: its newest point is ")
    assert out.splitlines()[-1].endswith(
        "1 snapshots on this host, such as tank/web@a, are held for an interrupted send; if it "
        f"will not come back: zvmsnap send --forget {ROOT}"
    )
    printed = json.loads(run("status", "--json")[1])
    assert printed["held"] == {ROOT: ["tank/web@a"]}
    assert printed["silent"] == {ROOT: "2026-01-01T00:00:00+00:00"}
    (path,) = config.journal_dir.glob("send-status/*/*.json")
    for data in (b'{"schema": 3}', b"\xff"):
        path.write_bytes(data)
        code, out, err = run("status", "--json")
        assert (code, json.loads(out)["unreadable"]) == (1, [str(path)])
        assert len(err.splitlines()) == 1


def test_forget(
    world: World, take: Take, run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(1)
    run("send", "web", ROOT)
    ended: list[str] = []
    own = f"zvmsnap-{hashlib.sha256(ROOT.encode()).hexdigest()[:8]}-{10:016x}"
    found = [Bookmark(WEB, own, 10, 1), Bookmark(WEB, "mine", 10, 1)]
    monkeypatch.setattr(zfs, "bookmarks", lambda *_: found)
    monkeypatch.setattr(zfs, "held_snapshots", lambda: [f"{WEB}@h1", f"{DATA}@h1"])
    tags = {f"{WEB}@h1": {f"zvmsnap send to {ROOT}"}, f"{DATA}@h1": {"zvmsnap send to x/y"}}
    monkeypatch.setattr(marks, "tags", tags.__getitem__)
    monkeypatch.setattr(marks, "destroy_bookmarks", ended.extend)
    monkeypatch.setattr(marks, "release", lambda names, _tag: ended.extend(names))
    code, out, _ = run("send", "--forget", ROOT)
    assert (code, out) == (0, f"{ROOT}: forgot 1 bookmarks, 1 holds, 1 statuses\n")
    assert ended == [f"{WEB}#{own}", f"{WEB}@h1"]
    assert send_status.read_all(config.journal_dir) == ([], [])
    assert list((config.journal_dir / "mirrors").iterdir()) == []
    assert run("send", "--forget", ROOT, "web", ROOT)[0] == 2


def test_a_hook_that_holds_the_lock_is_waited_for(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = FakeGuest("web", UUID)
    monkeypatch.setattr(overlay_chain, "of_guest", lambda _guest: {})
    tried = []

    @contextmanager
    def busy_once(*_: object) -> Iterator[None]:
        tried.append(1)
        if len(tried) == 1:
            raise LockTimeout("waited 30 s; it is held to capture run a")
        yield

    monkeypatch.setattr(wait_idle, "lock", busy_once)
    wait_idle.wait(config, [guest])
    assert len(tried) == 2
