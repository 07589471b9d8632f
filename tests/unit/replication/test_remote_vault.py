"""The vault of a destination, with real rsync and coreutils: on this machine, and through a shell.

A stand-in for ssh gives its last word to a shell, as sshd does.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.images import libvirt_image
from zvmsnap.common import log
from zvmsnap.common.errors import (
    DestinationUnreachable,
    ImageUnloadable,
    PointGone,
    RemoteFailed,
    VaultMissing,
)
from zvmsnap.common.safe_files import private_dir
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import vault
from zvmsnap.points.manifest import DOMAIN_XML, MANIFEST, MEMORY, Manifest, Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.ram.page_image import PAGES, REST
from zvmsnap.replication.remote_vault import RemoteVault, path_of
from zvmsnap.replication.transfer import PointTransfer
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


@pytest.fixture(params=["", "me@nas"])
def remote_vault(
    request: pytest.FixtureRequest, tmp_path: Path, config: Config, ssh: Path
) -> RemoteVault:
    remote = RemoteHost(request.param, config.locks_dir)
    destination = Destination(request.param, "backup/off")
    return RemoteVault(config, destination, remote, str(tmp_path / HOSTILE / "vault"))


@pytest.fixture
def web(tmp_path: Path, manifest: Build) -> RestorePoint:
    directory = tmp_path / "own/vault/web/h1"
    directory.mkdir(parents=True)
    (directory / MEMORY).write_bytes(RAM)
    (directory / DOMAIN_XML).write_text("<domain/>")
    (directory / "verify.png").write_bytes(b"is not sent")
    digest = hashlib.sha256(RAM).hexdigest()
    memory = Memory(MEMORY, "raw", "none", len(RAM), len(RAM), digest)
    return vault_point(directory, manifest(domain=HOSTILE, memory=memory))


def vault_point(directory: Path, manifest: Manifest) -> RestorePoint:
    point = RestorePoint(directory, manifest)
    vault.rewrite(point, manifest)
    return point


def transfer_of(point: RestorePoint) -> PointTransfer:
    return PointTransfer(point, "h1", point.manifest, with_memory=True)


def files(remote_vault: RemoteVault) -> dict[str, str]:
    """Everything in the vault of the destination, with modes."""
    top = Path(remote_vault.path)
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


def test_put_read_get_remove(remote_vault: RemoteVault, web: RestorePoint, tmp_path: Path) -> None:
    assert remote_vault.read() == ([], [])
    remote_vault.claim()
    sent_bytes = remote_vault.put(transfer_of(web), bwlimit="")
    assert len(RAM) < sent_bytes < len(RAM) + 20_000
    assert files(remote_vault) == WHOLE
    (point,), damaged = remote_vault.read()
    assert point.manifest == web.manifest and damaged == []
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    remote_vault.get_small(point, fetched)
    remote_vault.get_memory(point, fetched)
    assert sorted(path.name for path in fetched.iterdir()) == [DOMAIN_XML, MEMORY]
    assert (fetched / MEMORY).read_bytes() == RAM
    remote_vault.remove(point)
    assert files(remote_vault) == {}
    assert remote_vault.read() == ([], [])
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_an_interrupted_put_goes_on(remote_vault: RemoteVault, web: RestorePoint) -> None:
    remote_vault.claim()
    arriving = private_dir(Path(remote_vault.path) / FOLDER) / f".arriving-{web.manifest.capture}"
    private_dir(arriving)
    (arriving / MEMORY).write_bytes(RAM[:1_000_000])
    (arriving / MANIFEST).write_text("half")
    assert remote_vault.read() == ([], [])
    sent_bytes = remote_vault.put(transfer_of(web), bwlimit="")
    assert sent_bytes < 100_000
    assert files(remote_vault) == WHOLE


def test_point_that_is_removed_while_it_is_sent_does_not_appear_there(
    remote_vault: RemoteVault, web: RestorePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote_vault.claim()
    send = remote_vault._send

    def overtaken(paths: list[Path], *rest: Any) -> int:
        sent_bytes = send(paths, *rest)
        if paths[0].name == MEMORY:
            vault.remove(web)
        return sent_bytes

    monkeypatch.setattr(remote_vault, "_send", overtaken)
    with pytest.raises(PointGone, match="h1: was removed meanwhile"):
        remote_vault.put(transfer_of(web), bwlimit="")
    assert remote_vault.read() == ([], [])


def test_image_with_a_wrong_checksum_is_sent_anew(
    remote_vault: RemoteVault, web: RestorePoint
) -> None:
    remote_vault.claim()
    arriving = private_dir(Path(remote_vault.path) / FOLDER) / f".arriving-{web.manifest.capture}"
    private_dir(arriving)
    (arriving / MEMORY).write_bytes(bytes(len(RAM)))
    with pytest.raises(RemoteFailed, match="another checksum"):
        remote_vault.put(transfer_of(web), bwlimit="")
    assert remote_vault.read() == ([], [])
    remote_vault.put(transfer_of(web), bwlimit="")
    assert files(remote_vault) == WHOLE


def test_ram_is_sent_later(remote_vault: RemoteVault, web: RestorePoint) -> None:
    remote_vault.claim()
    remote_vault.put(
        PointTransfer(web, "h1", web.manifest.without_memory("no"), with_memory=False), bwlimit=""
    )
    assert f"{FOLDER}/h1/memory.img" not in files(remote_vault)
    remote_vault.put(transfer_of(web), bwlimit="1000M")
    assert files(remote_vault) == WHOLE
    (point,), _ = remote_vault.read()
    assert point.manifest.memory


@pytest.mark.parametrize("dies", [False, True])
def test_ram_is_removed_there_and_what_is_left_over_is_cleared(
    remote_vault: RemoteVault, web: RestorePoint, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """First the manifest says so; if everything dies after that, the next send ends it."""
    remote_vault.claim()
    remote_vault.put(transfer_of(web), bwlimit="")
    there = Path(remote_vault.path) / FOLDER / "h1"
    (there / "boot.json").write_text("{}")
    (point,), _ = remote_vault.read()
    without = {name: mode for name, mode in WHOLE.items() if not name.endswith(MEMORY)}
    if dies:
        publish = remote_vault._publish

        def dying(*words: Any) -> None:
            publish(*words)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(remote_vault, "_publish", dying)
            with pytest.raises(KeyboardInterrupt):
                remote_vault.remove_memory(point)
        assert files(remote_vault) == WHOLE
        (point,), _ = remote_vault.read()
        assert point.manifest.memory is None
        another = private_dir(there.with_name(".arriving-x"))
        (another / MEMORY).write_bytes(b"is on its way")
        remote_vault.clear_memory([])
        assert (there / MEMORY).exists()
        remote_vault.clear_memory([point])
        assert (another / MEMORY).exists()
        shutil.rmtree(another)
    else:
        remote_vault.remove_memory(point)
    assert files(remote_vault) == without
    (point,), _ = remote_vault.read()
    assert point.manifest == web.manifest.without_memory("RAM removed by keep-memory")


def test_clear(remote_vault: RemoteVault, web: RestorePoint) -> None:
    remote_vault.claim()
    uuid = web.manifest.uuid
    folder = Path(remote_vault.path) / "web"
    names = (f".arriving-{uuid}.1", f".arriving-{uuid}.2", ".arriving-another.1", ".removing-h1")
    for name in names:
        (folder / name).mkdir(parents=True)
    remote_vault.clear([uuid], [f"{uuid}.2"])
    assert sorted(path.name for path in folder.iterdir()) == [names[2], names[1]]


def test_another_vault_than_before(remote_vault: RemoteVault, web: RestorePoint) -> None:
    """Its file system is not mounted: nothing is written below it, no point counts as gone."""
    remote_vault.claim()
    shutil.move(remote_vault.path, f"{remote_vault.path}-away")
    for act in (remote_vault.claim, remote_vault.read):
        with pytest.raises(VaultMissing, match="is its file system mounted"):
            act()
    assert not Path(remote_vault.path).exists()
    shutil.move(f"{remote_vault.path}-away", remote_vault.path)
    remote_vault.claim()


def test_cannot_be_made(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file/vault")
    with pytest.raises(RemoteFailed, match="zfs set zvmsnap:vault="):
        RemoteVault(config, Destination("", "backup/off"), RemoteHost(""), path).claim()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_words_are_quoted_for_the_shell_there(words: list[str]) -> None:
    remote = RemoteHost("nas")
    remote.ssh = lambda: ["sh", "-c", 'shift; exec sh -c "$*"', "ssh"]  # type: ignore[method-assign]
    output = remote.run("printf", "%s\\0", *words)
    assert output.split("\0")[:-1] == words


def test_ssh_that_fails(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    with pytest.raises(DestinationUnreachable, match="nas: Host key verification failed"):
        RemoteHost("nas", ssh.parent).run("true")
    with pytest.raises(DestinationUnreachable, match="nas: "):
        RemoteHost("nas", ssh.parent).rsync("nas:/etc/hostname", str(ssh.parent))


PATHS = [
    pytest.param({"zvmsnap:vault": "/v"}, "/v", id="as it is set"),
    pytest.param({"mountpoint": "/off", "mounted": "yes"}, "/off/zvmsnap-vault", id="beside"),
    pytest.param({"mountpoint": "/", "mounted": "yes"}, "/zvmsnap-vault", id="root"),
]


@pytest.mark.parametrize(("properties", "expected"), PATHS)
def test_path(monkeypatch: pytest.MonkeyPatch, properties: dict[str, str], expected: str) -> None:
    everything = {"zvmsnap:vault": "", "mountpoint": "", "mounted": "no"} | properties
    monkeypatch.setattr(zfs, "properties", lambda *_: everything)
    assert path_of(Destination("", "backup/off"), RemoteHost("")) == expected


@pytest.mark.parametrize("value", ["", "v", "none", "/a\nb"])
def test_no_path(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    properties = {"zvmsnap:vault": value, "mountpoint": "none", "mounted": "no"}
    monkeypatch.setattr(zfs, "properties", lambda *_: properties)
    with pytest.raises(VaultMissing, match="backup/off"):
        path_of(Destination("", "backup/off"), RemoteHost(""))


def test_the_vault_of_this_host_is_no_destination(config: Config) -> None:
    vault.claim(config)
    own = RemoteVault(config, Destination("", "backup/off"), RemoteHost(""), config.vault)
    for act in (own.claim, own.read):
        with pytest.raises(VaultMissing, match="is the vault that points are sent from"):
            act()


# -- page images


@pytest.fixture
def paged(tmp_path: Path, web: RestorePoint) -> RestorePoint:
    """The same point, with a page image."""
    (web.directory / MEMORY).unlink()
    dump = tmp_path / "dump"
    dump.write_bytes(libvirt_image("<domain/>", bytes(range(1, 256)) * 200))
    own = log.about("web", "tank/web")
    memory = RamStore(web.directory, "web", web.manifest.uuid, True, None, own).store(dump, "raw")
    return vault_point(web.directory, msgspec.structs.replace(web.manifest, memory=memory))


def test_both_files_of_a_page_image(
    remote_vault: RemoteVault, paged: RestorePoint, tmp_path: Path
) -> None:
    remote_vault.claim()
    remote_vault.put(transfer_of(paged), bwlimit="")
    there = Path(remote_vault.path) / FOLDER / "h1"
    stored = {name: (paged.directory / name).read_bytes() for name in (PAGES, REST)}
    assert {name: (there / name).read_bytes() for name in stored} == stored
    blocks = [(each / PAGES).stat().st_blocks for each in (there, paged.directory)]
    assert blocks[0] <= blocks[1] < len(stored[PAGES]) / 512
    (point,), _ = remote_vault.read()
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    remote_vault.get_memory(point, fetched)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == stored


@pytest.mark.parametrize("name", [PAGES, REST])
def test_a_half_sent_page_image(remote_vault: RemoteVault, paged: RestorePoint, name: str) -> None:
    remote_vault.claim()
    capture = paged.manifest.capture
    arriving = private_dir(private_dir(Path(remote_vault.path) / FOLDER) / f".arriving-{capture}")
    content = (paged.directory / name).read_bytes()
    (arriving / name).write_bytes(content[: len(content) // 2])
    remote_vault.put(transfer_of(paged), bwlimit="")
    assert (arriving.with_name("h1") / name).read_bytes() == content


@pytest.mark.parametrize("name", [PAGES, REST])
def test_what_has_arrived_of_a_page_image_is_compared(
    remote_vault: RemoteVault, paged: RestorePoint, name: str
) -> None:
    remote_vault.claim()
    capture = paged.manifest.capture
    arriving = private_dir(private_dir(Path(remote_vault.path) / FOLDER) / f".arriving-{capture}")
    content = (paged.directory / name).read_bytes()
    (arriving / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    remote_vault.put(transfer_of(paged), bwlimit="")
    assert (arriving.with_name("h1") / name).read_bytes() == content


@pytest.mark.parametrize("name", [PAGES, REST])
def test_a_page_image_that_arrives_wrong_does_not_appear(
    remote_vault: RemoteVault, paged: RestorePoint, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote_vault.claim()
    send = remote_vault._send

    def spoilt(paths: list[Path], directory: Any, *rest: Any) -> int:
        sent_bytes = send(paths, directory, *rest)
        if paths[0].name == name:
            file = Path(directory) / name
            file.write_bytes(file.read_bytes()[:-1] + b"!")
        return sent_bytes

    monkeypatch.setattr(remote_vault, "_send", spoilt)
    with pytest.raises(RemoteFailed, match=f"{name}: arrived with another checksum"):
        remote_vault.put(transfer_of(paged), bwlimit="")
    assert remote_vault.read() == ([], [])


def test_damaged_pages_are_not_sent(remote_vault: RemoteVault, paged: RestorePoint) -> None:
    remote_vault.claim()
    pages = paged.directory / PAGES
    pages.write_bytes(b"!" + pages.read_bytes()[1:])
    with pytest.raises(ImageUnloadable, match=r"memory\.pages of .* does not match its checksum"):
        remote_vault.put(transfer_of(paged), bwlimit="")
    assert remote_vault.read() == ([], [])
