"""All paths that guests' definitions name."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

import libvirt
import pytest

from zvmsnap.virt import domain_xml, outline, qemu_process


class Connection:
    """What of libvirt's connection is used; each guest is its definition."""

    def __init__(self, *definitions: str) -> None:
        self._definitions = definitions
        self.is_open = True

    def listAllDomains(self) -> list["Guest"]:  # noqa: N802
        return [Guest(each) for each in self._definitions]

    def close(self) -> None:
        self.is_open = False


class Guest:
    def __init__(self, definition: str) -> None:
        self._definition = definition

    def XMLDesc(self) -> str:  # noqa: N802
        if not self._definition:
            raise libvirt.libvirtError
        return self._definition

    def ID(self) -> int:  # noqa: N802
        return 7 if "<runs/>" in self._definition else -1

    def name(self) -> str:
        return "my web"

    def UUIDString(self) -> str:  # noqa: N802
        return "u-1"


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str] | None]:
    """The paths that such definitions name."""

    def ask(*definitions: str) -> set[str] | None:
        connection = Connection(*definitions)
        monkeypatch.setattr(libvirt, "registerErrorHandler", lambda *_: None, raising=False)
        monkeypatch.setattr(libvirt, "open", {"qemu:///x": connection}.__getitem__, raising=False)
        try:
            used = outline.used("qemu:///x")
            return used[0] if used else None
        finally:
            assert not connection.is_open

    return ask


def definition(*disks: str, about: str = "") -> str:
    listed = "".join(f"<disk type='file' device='disk'>{each}</disk>" for each in disks)
    return (
        f"<domain type='kvm'><name>it's a name</name><uuid>x</uuid>{about}"
        f"<devices><emulator path='/usr/bin/qemu'/>{listed}</devices></domain>"
    )


TARGET = "<target dev='vda'/>"


def test_guests_and_disks(paths: Callable[..., set[str] | None]) -> None:
    assert paths() == set()
    assert paths(definition(), definition()) == {"/usr/bin/qemu"}
    web = definition(
        f"<source file='/tank/web/a' index='1'/><backingStore type='file'><source file='/b'/>"
        f"</backingStore>{TARGET}",
        f"<source dev='/dev/zvol/x'/>{TARGET}",
    )
    assert paths(web, definition(f"<source file='/c'/>{TARGET}")) == {
        "/tank/web/a", "/b", "/dev/zvol/x", "/c", "/usr/bin/qemu"
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/a b", "/a'b", '/a"b', "/a&b", "/a<b>", "/a&amp;b", "/a&lt;", "/\u00e4", "/a&quot;'b"]
)
def test_every_path_of_a_disk_is_among_them(
    paths: Callable[..., set[str] | None], path: str
) -> None:
    about = "<title>O'Neill's \"guest\"</title><description>'</description>"
    quoted = quoteattr(path, {"'": "&apos;", '"': "&quot;"}).replace('"', "'")
    guest = definition(f"<source file={quoted}/>{TARGET}", about=about)
    (disk,) = domain_xml.parse(guest).disks
    assert disk.source == path
    named = paths(guest)
    assert named and path in named


@pytest.mark.parametrize(
    "source",
    [
        "<source pool='p' volume='v'/>",
        "<source startupPolicy='optional' pool='p' volume='v'/>",
        "<source file='/s/x-1/vda.zvmsnap.qcow2'/>",
        "<source file='/a'/><backingStore><source file='/s/x-1/vda.zvmsnap.qcow2'/></backingStore>",
        "<source file='/a&#10;b'/>",
        "<source file='/a\tb'/>",
    ],
)
def test_disks_whose_path_is_not_named(paths: Callable[..., set[str] | None], source: str) -> None:
    assert paths(definition(), definition(f"{source}{TARGET}")) is None


def test_a_definition_that_is_not_told(paths: Callable[..., set[str] | None]) -> None:
    with pytest.raises(libvirt.libvirtError):
        paths(definition(), "")


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The QEMU of a guest that runs, by its directory in /proc."""
    own = tmp_path / "17"
    (own / "fd").mkdir(parents=True)
    (own / "cmdline").write_bytes(b"/usr/bin/qemu\0-uuid\0u-1\0-x\0")
    (tmp_path / "my web.pid").write_text("17\n")
    monkeypatch.setattr(outline, "_PROC", str(tmp_path))
    monkeypatch.setattr(outline, "_PID_FILES", str(tmp_path))
    return own


def runs(monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[int]] | None:
    connection = Connection(definition(about="<runs/>"), definition())
    monkeypatch.setattr(libvirt, "registerErrorHandler", lambda *_: None, raising=False)
    monkeypatch.setattr(libvirt, "open", lambda _uri: connection, raising=False)
    return outline.used("qemu:///x")


def test_devices_that_a_guest_has_open(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (process / "fd" / "3").symlink_to("/dev/null")
    (process / "fd" / "4").symlink_to("/etc/passwd")
    (process / "fd" / "5").symlink_to("/dev/no such device")
    assert runs(monkeypatch) == ({"/usr/bin/qemu"}, set())
    own = os.stat

    def block(path: str) -> os.stat_result:
        status = list(own("/dev/null"))
        result = os.stat_result([stat.S_IFBLK | 0o600, *status[1:]], {"st_rdev": 0x1234})
        return result if os.readlink(path) == "/dev/null" else own(path)

    monkeypatch.setattr(os, "stat", block)
    assert runs(monkeypatch) == ({"/usr/bin/qemu"}, {0x1234})


@pytest.mark.parametrize("missing", ["my web.pid", "17/cmdline", "17/fd"])
def test_process_that_cannot_be_looked_at(
    process: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    path = process.parent / missing
    path.rename(path.with_name("elsewhere"))
    assert runs(monkeypatch) is None


def test_process_of_another(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (process / "cmdline").write_bytes(b"/usr/bin/qemu\0-uuid\0u-2\0")
    assert runs(monkeypatch) is None
    (process.parent / "my web.pid").write_text("none")
    assert runs(monkeypatch) is None


def test_where_libvirt_notes_processes() -> None:
    assert str(qemu_process._PID_FILES) == outline._PID_FILES
