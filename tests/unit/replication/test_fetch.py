"""A point is fetched: rsync and both vaults are real, ZFS and syncoid are a table in memory."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import OTHER, UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import libvirt_image
from zvmsnap.common.errors import (
    EncryptionFailed,
    FetchRefused,
    PointNotFound,
    SyncoidFailed,
    ZvmsnapError,
)
from zvmsnap.common.ssh import HERE
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.encryption.age import Recipients
from zvmsnap.journal.fetches import Fetches
from zvmsnap.points import compatibility, definition, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MANIFEST,
    MEMORY,
    Disk,
    Manifest,
    Memory,
    OtherState,
    SnapshotRef,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import syncoid
from zvmsnap.replication.fetch import Fetcher
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.syncoid import SyncoidOptions
from zvmsnap.replication.transfer import PointTransfer
from zvmsnap.retention import leftovers, prune
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import (
    Dataset,
    Lineage,
    Snapshot,
    SnapshotListing,
    SnapshotUsage,
    Subtree,
)

Build = Callable[..., Manifest]
USB = Destination("", "usb/off")
XML = f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><memory>1</memory></domain>"
RAM = libvirt_image(XML)
NAMES = ("tank/web", "tank/web/data")
WHY_NOT = compatibility.why_not


class World:
    """Datasets and snapshots by name, and what syncoid was told."""

    def __init__(self, remote_vault: Path) -> None:
        self.local: dict[str, Dataset] = {"tank": Dataset("tank", "filesystem", False)}
        self.snapshots: dict[str, Snapshot] = {}
        self.remote = {f"usb/off/{name}": Snapshot(f"usb/off/{name}", "s", n, n)
                      for n, name in enumerate(NAMES, 1)}  # fmt: skip
        self.properties = {"zvmsnap:vault": str(remote_vault), "encryption": "off"}
        self.sent: list[str] = []
        self.fails_at = ""
        self.locked = False
        self.mounted: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zfs, "datasets", lambda: dict(self.local))
        patch.setattr(zfs, "subtree", lambda *_: self._subtree())
        patch.setattr(zfs, "properties", lambda *_: {"mountpoint": "", "mounted": "no"}
                      | self.properties)  # fmt: skip
        patch.setattr(zfs, "create", self._create)
        patch.setattr(zfs, "mount", self.mounted.append)
        patch.setattr(zfs, "snapshot_usage", self._uses)
        patch.setattr(zfs, "lineages", lambda: {n: Lineage(len(n), "") for n in self.local})
        patch.setattr(zfs, "pool_guids", lambda: {"tank": 70})
        patch.setattr(syncoid, "check", lambda _options: None)
        patch.setattr(syncoid, "run", self._syncoid)
        patch.setattr(compatibility, "why_not", lambda *_, **__: [])

    def _subtree(self) -> Subtree:
        return Subtree(
            frozenset(self.remote), {each.full_name: each for each in self.remote.values()}
        )

    def _create(self, name: str) -> None:
        self.local[name] = Dataset(name, "filesystem", False)

    def _uses(self, names: Sequence[str]) -> list[SnapshotUsage]:
        return [SnapshotUsage(self.snapshots[name], (), 0) for name in names]

    def _syncoid(
        self, source: str, target: str, options: SyncoidOptions, *, readonly: bool
    ) -> None:
        self.sent.append(f"{source} {target}{' raw' if options.raw else ''}")
        self.meanwhile()
        assert not readonly
        self.local[target] = Dataset(target, "filesystem", False, locked=self.locked)
        if target == self.fails_at:
            raise SyncoidFailed("cut")
        sent = self.remote[source]
        self.snapshots[target] = Snapshot(target, sent.name, sent.guid, 77)


@pytest.fixture
def world(
    tmp_path: Path, config: Config, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> World:
    """The source has a point in its vault."""
    world = World(tmp_path / "remote")
    world.install(monkeypatch)
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    (directory / MEMORY).write_bytes(RAM)
    (directory / DOMAIN_XML).write_text(XML)
    digest = hashlib.sha256(RAM).hexdigest()
    own = manifest(
        memory=Memory(MEMORY, "raw", "none", len(RAM), len(RAM), digest),
        disks=tuple(Disk("vda", "file", "raw", "/x", name, "x") for name in NAMES),
        snapshots=tuple(SnapshotRef(d, "s", n, n, f"usb/off/{d}") for n, d in enumerate(NAMES, 1)),
    )
    remote_vault = RemoteVault(config, USB, HERE, world.properties["zvmsnap:vault"])
    remote_vault.claim()
    transfer = PointTransfer(RestorePoint(directory, own), "h1", own, with_memory=True)
    remote_vault.put(transfer, bwlimit="")
    return world


def fetcher(config: Config, *guests: FakeGuest) -> Fetcher:
    return Fetcher(config, FakeHost(*guests), USB, SyncoidOptions())


def fetch(config: Config) -> RestorePoint:
    fetches = fetcher(config)
    return fetches.fetch(fetches.plan("web@latest"))


def test_a_host_that_has_nothing(world: World, config: Config) -> None:
    fetched = fetch(config)
    assert world.sent == [f"usb/off/{name} {name}" for name in NAMES]
    assert world.mounted == list(NAMES)
    assert vault.read(config) == ([fetched], [])
    refs = fetched.manifest.snapshots
    assert [ref.full_name for ref in refs] == ["tank/web@s", "tank/web/data@s"]
    assert {ref.createtxg for ref in refs} == {77}
    assert [(ref.dataset_guid, ref.pool_guid) for ref in refs] == [(8, 70), (13, 70)]
    assert (fetched.directory / MEMORY).read_bytes() == RAM
    assert sorted(os.listdir(fetched.directory)) == ["domain.xml", "manifest.json", "memory.img"]
    assert vault.unfinished(config.vault_dir) == []


@pytest.mark.skipif(not shutil.which("age-keygen"), reason="apt install age")
def test_a_point_that_is_encrypted(world: World, config: Config, tmp_path: Path) -> None:
    key = tmp_path / "key"
    done = subprocess.run(["age-keygen", "-o", key], stderr=subprocess.PIPE, check=True)
    recipients = Recipients((done.stderr.decode().split()[-1],))
    path = world.properties["zvmsnap:vault"]
    sent = RemoteVault(config, USB, HERE, path, recipients)
    (point,), _ = sent.read()
    shutil.rmtree(Path(path, "web"))
    own = RestorePoint(tmp_path / "elsewhere", point.manifest)
    sent.put(PointTransfer(own, "h1", own.manifest, with_memory=True), bwlimit="")

    with pytest.raises(EncryptionFailed, match="say --identity FILE"):
        fetch(config)
    assert (world.sent, vault.unfinished(config.vault_dir)) == ([], [])
    ram = Path(path, "web/h1", f"{MEMORY}.zst.age")
    whole = ram.read_bytes()
    ram.write_bytes(whole[:-1])
    by_key = Fetcher(config, FakeHost(), USB, SyncoidOptions(), identity=str(key))
    with pytest.raises(EncryptionFailed, match="failed to decrypt"):
        by_key.fetch(by_key.plan("web@latest"))
    assert vault.read(config) == ([], [])
    ram.write_bytes(whole)
    fetched = by_key.fetch(by_key.plan("web@latest"))
    assert sorted(os.listdir(fetched.directory)) == ["domain.xml", "manifest.json", "memory.img"]
    assert not fetched.manifest.encrypted
    assert fetched.manifest.memory == point.manifest.memory
    assert fetched.manifest.disks == point.manifest.disks


def test_an_interrupted_fetch_goes_on(world: World, config: Config) -> None:
    world.fails_at = NAMES[1]
    with pytest.raises(SyncoidFailed):
        fetch(config)
    assert vault.read(config) == ([], [])
    world.fails_at = ""
    assert fetch(config).manifest.memory
    # The fetch is complete: these datasets are not overwritten by another one.
    with pytest.raises(FetchRefused, match="tank/web: exists on this host"):
        fetch(config)


@pytest.mark.parametrize("owner", ["runs", "was killed"])
def test_what_is_fetched_is_no_leftover(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """`prune` and `recover` leave it alone, and the same command goes on with it."""
    monkeypatch.setattr(zfs, "all_snapshots", lambda guids=None: SnapshotListing([], {}, {}))
    seen = []

    def swept() -> None:
        seen.append(leftovers.find(config).paths)
        leftovers.find(config).remove()
        seen.append(prune.sweep(config).leftovers.paths)
        assert len(vault.unfinished(config.vault_dir)) == 1

    if owner == "runs":
        world.meanwhile = swept
    else:
        world.fails_at = NAMES[1]
        with pytest.raises(SyncoidFailed):
            fetch(config)
        swept()
        world.fails_at = ""
    fetched = fetch(config)
    assert seen and not any(seen)
    assert sorted(os.listdir(fetched.directory)) == ["domain.xml", "manifest.json", "memory.img"]
    assert not list((config.journal_dir / "fetches").iterdir())
    assert leftovers.find(config).paths == []


def test_nothing_incomplete_is_published(world: World, config: Config) -> None:
    """Even if somebody removes by hand what was fetched so far."""

    def removed() -> None:
        for unfinished in vault.unfinished(config.vault_dir):
            shutil.rmtree(unfinished.directory)

    world.meanwhile = removed
    fetched = fetch(config)
    assert sorted(os.listdir(fetched.directory)) == ["domain.xml", "manifest.json", "memory.img"]


def test_an_interrupted_fetch_is_told(world: World, config: Config) -> None:
    fetches = Fetches(config.journal_dir)
    told = []
    world.meanwhile = lambda: told.extend(fetches.interrupted(config))
    world.fails_at = NAMES[1]
    with pytest.raises(SyncoidFailed):
        fetch(config)
    # While its process holds the guest's lock it is under way.
    assert told == []
    (line,) = fetches.interrupted(config)
    assert "the fetch of web@h1 from usb/off was interrupted" in line
    (config.journal_dir / "fetches" / f"{UUID}.json").write_bytes(b"\xff\xfe")
    (line,) = fetches.interrupted(config)
    assert "an unfinished fetch; remove the file" in line
    assert fetches.guests() == {UUID}


def test_key_that_is_not_loaded(world: World, config: Config) -> None:
    world.locked, world.properties["encryption"] = True, "aes-256-gcm"
    with pytest.raises(FetchRefused, match="zfs load-key tank/web, and the same command"):
        fetch(config)
    assert world.sent == ["usb/off/tank/web tank/web raw"] and world.mounted == []
    world.locked = False
    fetch(config)


def test_image_with_a_wrong_checksum_is_not_published(
    world: World, config: Config, tmp_path: Path
) -> None:
    image = tmp_path / "remote/web/h1/memory.img"
    good = image.read_bytes()
    image.write_bytes(good[:-1] + b"x")
    with pytest.raises(ZvmsnapError, match="checksum"):
        fetch(config)
    assert vault.read(config) == ([], [])
    image.write_bytes(good)
    fetch(config)


def refused(world: World, config: Config, *guests: FakeGuest) -> str:
    with pytest.raises(ZvmsnapError) as caught:
        fetcher(config, *guests).plan("web@latest")
    assert world.sent == []
    return str(caught.value)


def test_the_guest_runs_here(world: World, config: Config) -> None:
    assert "web: runs here" in refused(world, config, FakeGuest("web", UUID))


@pytest.mark.parametrize(("name", "uuid"), [("web", OTHER), ("www", UUID)])
def test_another_guest_has_its_name(world: World, config: Config, name: str, uuid: str) -> None:
    guest = FakeGuest(name, uuid)
    guest.active = False
    assert "only its name, or only its UUID" in refused(world, config, guest)


def test_dataset_exists(world: World, config: Config) -> None:
    world.local["tank/web/data"] = Dataset("tank/web/data", "volume", False)
    assert "tank/web/data: exists on this host" in refused(world, config)


def test_no_such_pool(world: World, config: Config) -> None:
    del world.local["tank"]
    assert "this host has no pool tank" in refused(world, config)


def test_unfinished_fetch_from_another_source(world: World, config: Config) -> None:
    world.fails_at = NAMES[0]
    with pytest.raises(SyncoidFailed):
        fetch(config)
    world.sent.clear()
    unfinished = next((config.journal_dir / "fetches").iterdir())
    unfinished.write_text(unfinished.read_text().replace("usb/off", "other/off"))
    assert "tank/web: exists on this host" in refused(world, config)
    for data in (b"{", b'{"schema": 3}', b"\xff\xfe{}"):
        unfinished.write_bytes(data)
        assert "remove it" in refused(world, config)


def test_no_such_point(world: World, config: Config) -> None:
    with pytest.raises(PointNotFound):
        fetcher(config).plan("db@latest")


def test_point_that_does_not_say_which_part_of_its_volume(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,), _ = RemoteVault(config, USB, HERE, world.properties["zvmsnap:vault"]).read()
    disks = (Disk("vda", "block", "raw", "/dev/zvol/tank/web-part1", "tank/web", ""),)
    old = RestorePoint(point.directory, msgspec.structs.replace(point.manifest, disks=disks))
    monkeypatch.setattr(RemoteVault, "read", lambda _self: ([old], []))
    with pytest.raises(FetchRefused, match="does not say which part of tank/web that was"):
        fetch(config)
    assert world.sent == []


def test_does_not_fit(world: World, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "why_not", lambda *_, **__: ["no such machine"])
    with pytest.raises(FetchRefused, match="does not fit this host: no such machine"):
        fetch(config)
    assert world.sent == []
    # Nothing is left of it: a dataset that is made later is not taken for one of its own.
    assert vault.unfinished(config.vault_dir) == []
    assert Fetches(config.journal_dir).guests() == frozenset()


def test_read_only_files_come_with_its_datasets(
    world: World,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A seed ISO beside the disk, and a kernel in a dataset that has no disk; no others."""
    monkeypatch.setattr(compatibility, "why_not", WHY_NOT)
    (path,) = Path(world.properties["zvmsnap:vault"]).rglob(MANIFEST)
    known = msgspec.json.decode(path.read_bytes(), type=Manifest)
    disks = tuple(
        msgspec.structs.replace(disk, source="/no/web/vda.raw", path="vda.raw")
        for disk in known.disks[:1]
    )
    kernel = OtherState("kernel", "/no/boot/vmlinuz", NAMES[1], "vmlinuz")
    changed = msgspec.structs.replace(known, disks=disks, other_state=(kernel,), memory=None)
    path.write_bytes(msgspec.json.encode(changed))
    boot = "<os><type arch='x86_64'>hvm</type><kernel>/no/boot/vmlinuz</kernel></os>"
    seed = "<source file='/no/web/seed.iso'/><target dev='sda'/><readonly/>"
    drive = f"<devices><disk type='file' device='cdrom'>{seed}</disk></devices>"
    text = XML.replace("</domain>", f"{boot}{drive}</domain>")
    path.with_name(DOMAIN_XML).write_text(text)
    fetches = Fetcher(config, FakeHost(), USB, SyncoidOptions(), trust=True)
    assert fetches.fetch(fetches.plan("web@latest"))


SERIAL = "<serial type='file'><source path='/etc/cron.d/x'/><target port='0'/></serial>"


def spoil(world: World) -> None:
    """The definition at the source reaches the host."""
    (definition_file,) = Path(world.properties["zvmsnap:vault"]).rglob(DOMAIN_XML)
    definition_file.write_text(XML.replace("</domain>", f"<devices>{SERIAL}</devices></domain>"))


def test_what_reaches_this_host_is_refused_before_anything_is_fetched(
    world: World, config: Config
) -> None:
    spoil(world)
    line = refused(world, config)
    assert "serial 0: file /etc/cron.d/x" in line
    assert f"in {world.properties['zvmsnap:vault']}/web/h1; if that is right, say --trust" in line
    assert vault.unfinished(config.vault_dir) == []


def test_with_trust_it_is_fetched_and_the_plan_says_what(world: World, config: Config) -> None:
    spoil(world)
    fetches = Fetcher(config, FakeHost(), USB, SyncoidOptions(), trust=True)
    plan = fetches.plan("web@latest")
    assert plan.lines[-1].endswith("TRUSTED, as it was not made on this host: "
                                   "serial 0: file /etc/cron.d/x")  # fmt: skip
    assert fetches.fetch(plan).directory.exists()


def test_a_point_that_was_made_here_comes_home_without(world: World, config: Config) -> None:
    spoil(world)
    (directory,) = (path.parent for path in Path(world.properties["zvmsnap:vault"]).rglob(MEMORY))
    path = directory / MANIFEST
    known = msgspec.json.decode(path.read_bytes(), type=Manifest)
    sealed = definition.seal_of(config, directory, known)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, seal=sealed)))
    sealed_definition = (directory / DOMAIN_XML).read_text()
    (directory / DOMAIN_XML).write_text(f"{sealed_definition} ")
    with pytest.raises(FetchRefused, match="say --trust"):
        fetch(config)
    (directory / DOMAIN_XML).write_text(sealed_definition)
    fetched = fetch(config)
    assert definition.is_made_here(config, fetched.directory, fetched.manifest)
