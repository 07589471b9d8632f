"""The vault of a destination, with real rsync and coreutils: on this machine, and through a shell.

A stand-in for ssh gives its last word to a shell, as sshd does.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.atomic_file import private_dir
from zvmsnap.common.errors import DestinationUnreachable, RemoteFailed, VaultMissing
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.manifest import DOMAIN_XML, MANIFEST, MEMORY, Manifest, Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import remote_vault
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.transfer import PointTransfer, without_memory
from zvmsnap.zfs import zfs

Build = Callable[..., Manifest]
RAM = bytes(range(256)) * 4000
SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -l ] && shift 2
shift
exec sh -c "$*"
"""
HOSTILE = """a "b" 'c' $(touch pwned) `touch pwned`; touch pwned & \\ * ~"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "bin/ssh"
    script.parent.mkdir()
    script.write_text(SSH)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    return script


@pytest.fixture
def config(tmp_path: Path) -> Config:
    own = tmp_path / "own"
    return Config(vault=f"{own}/vault", journal=f"{own}/journal", locks=f"{own}/locks")


@pytest.fixture(params=["", "me@nas"])
def there(request: pytest.FixtureRequest, tmp_path: Path, config: Config, ssh: Path) -> RemoteVault:
    host = request.param
    far = RemoteHost(host, config.locks_dir)
    return RemoteVault(config, Destination(host, "far/off"), far, str(tmp_path / HOSTILE / "vault"))


@pytest.fixture
def web(tmp_path: Path, manifest: Build) -> RestorePoint:
    directory = tmp_path / "own/vault/web/h1"
    directory.mkdir(parents=True)
    (directory / MEMORY).write_bytes(RAM)
    (directory / DOMAIN_XML).write_text("<domain/>")
    (directory / "verify.png").write_bytes(b"of here alone")
    digest = hashlib.sha256(RAM).hexdigest()
    memory = Memory(MEMORY, "raw", "none", len(RAM), len(RAM), digest)
    made = manifest(domain=HOSTILE, memory=memory)
    return vault_point(directory, made)


def vault_point(directory: Path, manifest: Manifest) -> RestorePoint:
    found = RestorePoint(directory, manifest)
    vault.rewrite(found, manifest)
    return found


def parcel(point: RestorePoint) -> PointTransfer:
    return PointTransfer(point, "h1", point.manifest, with_memory=True)


def files(there: RemoteVault) -> dict[str, str]:
    """What lies in the vault there, with modes."""
    top = Path(there.place)
    return {
        str(path.relative_to(top)): oct(path.stat().st_mode)[-3:]
        for path in sorted(top.rglob("*"))
        if path.name != vault.MARK
    }


FOLDER = vault.folder_of(HOSTILE)
WHOLE = {
    FOLDER: "700",
    f"{FOLDER}/h1": "700",
    f"{FOLDER}/h1/domain.xml": "600",
    f"{FOLDER}/h1/manifest.json": "600",
    f"{FOLDER}/h1/memory.img": "600",
}


def test_put_read_get_remove(there: RemoteVault, web: RestorePoint, tmp_path: Path) -> None:
    assert there.read() == ([], [])
    there.claim()
    sent_bytes = there.put(parcel(web), bwlimit="")
    assert len(RAM) < sent_bytes < len(RAM) + 20_000
    assert files(there) == WHOLE
    (found,), damaged = there.read()
    assert found.manifest == web.manifest and damaged == []
    home = tmp_path / "home"
    home.mkdir()
    there.get_small(found, home)
    there.get_memory(found, home)
    assert sorted(path.name for path in home.iterdir()) == [DOMAIN_XML, MEMORY]
    assert (home / MEMORY).read_bytes() == RAM
    there.remove(found)
    assert files(there) == {}
    assert there.read() == ([], [])
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_interrupted_and_gone_on_with(there: RemoteVault, web: RestorePoint) -> None:
    there.claim()
    arriving = private_dir(Path(there.place) / FOLDER) / f".arriving-{web.manifest.capture}"
    private_dir(arriving)
    (arriving / MEMORY).write_bytes(RAM[:1_000_000])
    (arriving / MANIFEST).write_text("half")
    assert there.read() == ([], [])
    sent_bytes = there.put(parcel(web), bwlimit="")
    assert sent_bytes < 100_000
    assert files(there) == WHOLE


def test_what_a_power_cut_has_spoilt_is_sent_anew(there: RemoteVault, web: RestorePoint) -> None:
    there.claim()
    arriving = private_dir(Path(there.place) / FOLDER) / f".arriving-{web.manifest.capture}"
    private_dir(arriving)
    (arriving / MEMORY).write_bytes(bytes(len(RAM)))
    with pytest.raises(RemoteFailed, match="another checksum"):
        there.put(parcel(web), bwlimit="")
    assert there.read() == ([], [])
    there.put(parcel(web), bwlimit="")
    assert files(there) == WHOLE


def test_ram_follows_into_a_point_without(there: RemoteVault, web: RestorePoint) -> None:
    there.claim()
    there.put(
        PointTransfer(web, "h1", without_memory(web.manifest, "no"), with_memory=False), bwlimit=""
    )
    assert f"{FOLDER}/h1/memory.img" not in files(there)
    there.put(parcel(web), bwlimit="1000M")
    assert files(there) == WHOLE
    (found,), _ = there.read()
    assert found.manifest.memory


def test_what_is_half_there_is_cleared(there: RemoteVault, web: RestorePoint) -> None:
    there.claim()
    uuid = web.manifest.uuid
    folder = Path(there.place) / "web"
    names = (f".arriving-{uuid}.1", f".arriving-{uuid}.2", ".arriving-another.1", ".removing-h1")
    for name in names:
        (folder / name).mkdir(parents=True)
    there.clear([uuid], [f"{uuid}.2"])
    assert sorted(path.name for path in folder.iterdir()) == [names[2], names[1]]


def test_not_the_vault_of_before(there: RemoteVault, web: RestorePoint) -> None:
    """Its file system is not mounted: nothing is written under it, nothing taken for gone."""
    there.claim()
    shutil.move(there.place, f"{there.place}-away")
    for act in (there.claim, there.read):
        with pytest.raises(VaultMissing, match="is its file system mounted"):
            act()
    assert not Path(there.place).exists()
    shutil.move(f"{there.place}-away", there.place)
    there.claim()


def test_cannot_be_made(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file/vault")
    with pytest.raises(RemoteFailed, match="zfs set zvmsnap:vault="):
        RemoteVault(config, Destination("", "far/off"), RemoteHost(""), place).claim()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_words_arrive_as_they_are(words: list[str]) -> None:
    far = RemoteHost("nas")
    far.ssh = lambda: ["sh", "-c", 'shift; exec sh -c "$*"', "ssh"]  # type: ignore[method-assign]
    said = far.run("printf", "%s\\0", *words)
    assert said.split("\0")[:-1] == words


def test_ssh_that_fails(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    with pytest.raises(DestinationUnreachable, match="nas: Host key verification failed"):
        RemoteHost("nas", ssh.parent).run("true")
    with pytest.raises(DestinationUnreachable, match="nas: "):
        RemoteHost("nas", ssh.parent).rsync("nas:/etc/hostname", str(ssh.parent))


PLACES = [
    pytest.param({"zvmsnap:vault": "/v"}, "/v", id="as it is set"),
    pytest.param({"mountpoint": "/off", "mounted": "yes"}, "/off/zvmsnap-vault", id="beside"),
    pytest.param({"mountpoint": "/", "mounted": "yes"}, "/zvmsnap-vault", id="root"),
]


@pytest.mark.parametrize(("said", "expected"), PLACES)
def test_place(monkeypatch: pytest.MonkeyPatch, said: dict[str, str], expected: str) -> None:
    everything = {"zvmsnap:vault": "", "mountpoint": "", "mounted": "no"} | said
    monkeypatch.setattr(zfs, "properties", lambda *_: everything)
    assert remote_vault.place_of(Destination("", "far/off"), RemoteHost("")) == expected


@pytest.mark.parametrize("value", ["", "v", "none", "/a\nb"])
def test_no_place(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    said = {"zvmsnap:vault": value, "mountpoint": "none", "mounted": "no"}
    monkeypatch.setattr(zfs, "properties", lambda *_: said)
    with pytest.raises(VaultMissing, match="far/off"):
        remote_vault.place_of(Destination("", "far/off"), RemoteHost(""))


def test_not_the_vault_of_here(config: Config) -> None:
    vault.claim(config)
    there = RemoteVault(config, Destination("", "far/off"), RemoteHost(""), config.vault)
    for act in (there.claim, there.read):
        with pytest.raises(VaultMissing, match="is the vault that points are sent from"):
            act()
