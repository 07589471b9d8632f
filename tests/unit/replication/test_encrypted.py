"""Points go to a destination that may not read them, with the real age(1), and come back."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID
from tests.fakes.images import libvirt_image
from zvmsnap.common import json_file
from zvmsnap.common.errors import (
    DestinationUnreachable,
    EncryptionFailed,
    ImageUnloadable,
    RestoreImpossible,
)
from zvmsnap.common.ssh import HERE
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.encryption import age, in_place
from zvmsnap.encryption.age import NOBODY, Recipients
from zvmsnap.encryption.copies import BUNDLE, readable
from zvmsnap.points import definition, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MANIFEST,
    MEMORY,
    NVRAM,
    Disk,
    Manifest,
    Memory,
    OtherState,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import remote_vault as module
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.transfer import PointTransfer

pytestmark = pytest.mark.skipif(not shutil.which("age-keygen"), reason="apt install age")

Build = Callable[..., Manifest]
SECRET = "SECRET"
XML = f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><title>{SECRET}</title></domain>"
RAM = libvirt_image(XML)
OFF = Destination("", "backup/off")
FILES = [MANIFEST, f"{MEMORY}.zst.age", BUNDLE]


@pytest.fixture
def identity(tmp_path: Path) -> str:
    return str(tmp_path / "key")


@pytest.fixture
def recipients(identity: str) -> Recipients:
    done = subprocess.run(["age-keygen", "-o", identity], stderr=subprocess.PIPE, check=True)
    return Recipients((done.stderr.decode().split()[-1],))


@pytest.fixture
def there(tmp_path: Path, config: Config, recipients: Recipients) -> RemoteVault:
    there = RemoteVault(config, OFF, HERE, f"{tmp_path}/there", recipients)
    there.claim()
    return there


@pytest.fixture
def take(config: Config, manifest: Build) -> Callable[[int], RestorePoint]:
    def taken(hour: int) -> RestorePoint:
        directory = config.vault_dir / "web" / f"h{hour}"
        directory.mkdir(parents=True)
        (directory / MEMORY).write_bytes(RAM)
        (directory / DOMAIN_XML).write_text(XML)
        (directory / NVRAM).write_bytes(SECRET.encode() + bytes(100_000))
        digest = hashlib.sha256(RAM).hexdigest()
        own = manifest(
            uuid=UUID, domain="web", run=f"h{hour}", capture=f"{UUID}.0000000{hour}",
            created=f"2026-11-20T0{hour}:00:00+00:00", reason=SECRET, tpm_warning=SECRET,
            memory=Memory(MEMORY, "raw", "none", len(RAM), len(RAM), digest),
            disks=(Disk("vda", "file", "raw", f"/{SECRET}", "tank/web", SECRET),),
            other_state=(OtherState(SECRET, SECRET, "tank/nvram", SECRET),),
        )  # fmt: skip
        own = msgspec.structs.replace(own, seal=definition.seal_of(config, directory, own))
        point = RestorePoint(directory, own)
        vault.rewrite(point, own)
        return point

    return taken


Take = Callable[[int], RestorePoint]


def transfer_of(point: RestorePoint) -> PointTransfer:
    return PointTransfer(point, point.directory.name, point.manifest, with_memory=True)


def names(there: RemoteVault, point: str) -> list[str]:
    return sorted(path.name for path in Path(there.path, "web", point).iterdir())


def kept_here(config: Config) -> list[str]:
    return sorted(path.name for path in (config.vault_dir / ".encrypted").rglob("*.age"))


def test_there_and_back(
    there: RemoteVault, take: Take, config: Config, tmp_path: Path, identity: str
) -> None:
    point = take(1)
    assert there.put(transfer_of(point), bwlimit="") > 0
    assert names(there, "h1") == FILES
    assert kept_here(config) == []
    # Nothing secret is there: neither the guest's, nor of this host, nor a digest of its RAM.
    memory = point.manifest.memory
    assert memory
    for path in Path(there.path).rglob("*.*"):
        data = path.read_bytes() if path.is_file() else b""
        assert SECRET.encode() not in data and memory.sha256.encode() not in data
        assert point.manifest.host.host_cpu.encode() not in data
    # `list --remote` and pruning have what they need without the key.
    (remote_point,), damaged = there.read()
    assert damaged == [] and remote_point.manifest == readable(point.manifest)
    seen = remote_point.manifest
    assert seen.run == "h1"
    assert seen.datasets == point.manifest.datasets == {"tank/web", "tank/nvram"}
    assert seen.memory and seen.memory.stored_bytes == len(RAM) and seen.encrypted

    back = tmp_path / "web/back"
    back.mkdir(parents=True)
    whole = there.get_small(remote_point, back, identity)
    assert msgspec.structs.replace(whole, encrypted=False) == point.manifest
    there.get_memory(RestorePoint(remote_point.directory, whole), back, None, identity)
    assert sorted(path.name for path in back.iterdir()) == [DOMAIN_XML, MEMORY, NVRAM]
    for path in back.iterdir():
        assert path.read_bytes() == (point.directory / path.name).read_bytes()
    assert definition.is_made_here(config, back, whole)


def test_an_interrupted_send_goes_on_with_what_it_has_encrypted(
    there: RemoteVault, take: Take, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = take(1)
    send = there._send

    def cut(paths: list[Path], directory: Any, *rest: str) -> int:
        half = paths[0].read_bytes()[: paths[0].stat().st_size // 2]
        Path(directory, paths[0].name).write_bytes(half)
        raise DestinationUnreachable("nas: cut")

    with monkeypatch.context() as context:
        context.setattr(there, "_send", cut)
        with pytest.raises(DestinationUnreachable):
            there.put(transfer_of(point), bwlimit="")
    assert there.read() == ([], [])
    assert kept_here(config) == [f"{MEMORY}.zst.age"]
    encrypted: list[str] = []
    encrypt = age.encrypt

    def counted(source: Any, target: Path, recipients: Recipients) -> None:
        encrypted.append(target.name)
        encrypt(source, target, recipients)

    monkeypatch.setattr(age, "encrypt", counted)
    monkeypatch.setattr(there, "_send", send)
    there.put(transfer_of(point), bwlimit="")
    assert encrypted == [BUNDLE] and kept_here(config) == []
    assert names(there, "h1") == FILES


def test_what_is_encrypted_here_goes_with_its_purpose(
    there: RemoteVault, take: Take, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point is not sent any more; the destination is forgotten."""
    point = take(1)
    with monkeypatch.context() as context:
        context.setattr(there, "_send", lambda *_: 1 / 0)
        cleanings: tuple[Callable[[], None], ...] = (
            lambda: there.clear([UUID], []),
            lambda: module.forget(config, OFF.name),
        )
        for clean in cleanings:
            with pytest.raises(ZeroDivisionError):
                there.put(transfer_of(point), bwlimit="")
            there.clear(["1" * 36], [])
            there.clear([UUID], [point.manifest.capture])
            assert len(kept_here(config)) == 1
            clean()
            assert kept_here(config) == []


def test_another_key_and_cut_files_are_refused(
    there: RemoteVault, take: Take, tmp_path: Path, identity: str
) -> None:
    there.put(transfer_of(take(1)), bwlimit="")
    there.put(transfer_of(take(2)), bwlimit="")
    first, second = there.read()[0]
    back = tmp_path / "web/back"
    back.mkdir(parents=True)
    subprocess.run(["age-keygen", "-o", f"{identity}2"], stderr=subprocess.DEVNULL, check=True)
    for wrong, why in ((f"{identity}2", "no identity matched"), ("", "say --identity FILE")):
        with pytest.raises(EncryptionFailed, match=why):
            there.get_small(first, back, wrong)
    whole = RestorePoint(first.directory, there.get_small(first, back, identity))
    # Swapped by the destination, for files that were encrypted to the same key.
    for name in (BUNDLE, f"{MEMORY}.zst.age"):
        mine, other = (Path(there.path, "web", run, name) for run in ("h1", "h2"))
        shutil.copy(other, mine)
    with pytest.raises(EncryptionFailed, match="is of another point"):
        there.get_small(first, back, identity)
    ram = Path(there.path, "web/h1", f"{MEMORY}.zst.age")
    ram.write_bytes(ram.read_bytes()[:-1])
    with pytest.raises(EncryptionFailed, match="failed to decrypt"):
        there.get_memory(whole, back, None, identity)
    assert sorted(path.name for path in back.iterdir()) == [DOMAIN_XML, NVRAM]
    assert second.manifest.encrypted


@pytest.mark.parametrize("member", ["../../outside", "/outside", "memory.img", "link"])
def test_bundle_that_leads_elsewhere(
    there: RemoteVault,
    take: Take,
    tmp_path: Path,
    identity: str,
    recipients: Recipients,
    member: str,
) -> None:
    """Who knows the public key may have made it: nothing but our files comes out of it."""
    point = take(1)
    there.put(transfer_of(point), bwlimit="")
    (remote_point,), _ = there.read()
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as bundle:
        for name, data in ((MANIFEST, json_file.encoded(point.manifest)), (member, b"x")):
            info = tarfile.TarInfo(DOMAIN_XML if name == "link" else name)
            info.size = len(data)
            if name == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            bundle.addfile(info, io.BytesIO(data))
    path = Path(there.path, "web/h1", BUNDLE)
    age.encrypt(io.BytesIO(output.getvalue()), path, recipients)
    back = tmp_path / "web/back"
    back.mkdir(parents=True)
    there.get_small(remote_point, back, identity)
    assert list(back.iterdir()) == [] and not list(tmp_path.rglob("outside"))


def test_ram_that_is_damaged_here_is_not_sent(there: RemoteVault, take: Take) -> None:
    point = take(1)
    (point.directory / MEMORY).write_bytes(RAM[:-1] + b"x")
    with pytest.raises(ImageUnloadable, match="checksum"):
        there.put(transfer_of(point), bwlimit="")
    assert there.read() == ([], [])


def test_a_moved_snapshot_changes_the_readable_manifest_alone(
    there: RemoteVault, take: Take
) -> None:
    point = take(1)
    there.put(transfer_of(point), bwlimit="")
    (remote_point,), _ = there.read()
    refs = tuple(
        msgspec.structs.replace(ref, current_dataset="tank/elsewhere")
        for ref in remote_point.manifest.snapshots
    )
    moved = remote_point.manifest.with_snapshots(refs)
    there.put(PointTransfer(point, "h1", moved, with_memory=False), bwlimit="")
    (again,), _ = there.read()
    assert again.manifest == moved and names(there, "h1") == FILES


def test_a_destination_that_was_plain(there: RemoteVault, take: Take, config: Config) -> None:
    """Points that are there stay as they are, until they are sent anew."""
    plain = RemoteVault(config, OFF, HERE, str(there.path), NOBODY)
    whole, bare = take(1), take(2)
    plain.put(transfer_of(whole), bwlimit="")
    plain.put(
        PointTransfer(bare, "h2", bare.manifest.without_memory("no"), with_memory=False), bwlimit=""
    )
    before = names(there, "h1")
    # Its snapshots have moved: its manifest goes alone, and its files stay.
    there.put(PointTransfer(whole, "h1", whole.manifest, with_memory=False), bwlimit="")
    assert names(there, "h1") == before and MEMORY in before
    # Its RAM is wanted: nothing of it stays readable.
    there.put(transfer_of(bare), bwlimit="")
    assert names(there, "h2") == FILES
    plain.put(transfer_of(bare), bwlimit="")
    assert names(there, "h2") == sorted([MANIFEST, MEMORY, DOMAIN_XML, NVRAM])


def test_decrypted_where_it_lies(
    there: RemoteVault, take: Take, config: Config, identity: str
) -> None:
    """By a host whose own vault it is; if it dies, it goes on."""
    point = take(1)
    there.put(transfer_of(point), bwlimit="")
    at_nas = msgspec.structs.replace(config, vault=str(there.path))
    (encrypted,), _ = vault.read(at_nas)
    with pytest.raises(RestoreImpossible, match="web@h1: is encrypted: zvmsnap restore --identity"):
        definition.definition_of(encrypted)
    with pytest.raises(EncryptionFailed, match="say --identity FILE"):
        in_place.decrypt(at_nas, encrypted, "")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(vault, "rewrite", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            in_place.decrypt(at_nas, encrypted, identity)
    assert vault.read(at_nas)[0] == [encrypted]
    assert in_place.decrypt(at_nas, encrypted, identity).manifest == point.manifest
    assert names(there, "h1") == sorted([MANIFEST, MEMORY, DOMAIN_XML, NVRAM])
    assert vault.unfinished(at_nas.vault_dir) == []
    (decrypted,), _ = vault.read(at_nas)
    assert definition.definition_of(decrypted) == XML


def test_a_file_that_is_missing(
    there: RemoteVault, take: Take, tmp_path: Path, identity: str
) -> None:
    there.put(transfer_of(take(1)), bwlimit="")
    (point,), _ = there.read()
    Path(there.path, "web/h1", BUNDLE).unlink()
    with pytest.raises(EncryptionFailed, match=f"web@h1: {BUNDLE}: is missing"):
        there.get_small(point, tmp_path, identity)
