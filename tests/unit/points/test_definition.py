import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.images import make_base
from zvmsnap.points import definition
from zvmsnap.virt import tpm_state
from zvmsnap.virt.domain_xml import Nvram
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import DiskLocation

Store = Callable[[], str | None]


class EquippedGuest(FakeGuest):
    """A guest with more devices."""

    devices = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    nvram = ""

    def xml_of(self, sources: dict[str, str], *, live: bool = False) -> str:
        xml = super().xml_of(sources, live=live)
        return xml.replace(
            "<devices>", f"<os><nvram>{self.nvram}</nvram></os><devices>{self.devices}"
        )


@pytest.fixture
def guest(tmp_path: Path) -> EquippedGuest:
    return EquippedGuest(vda=make_base(tmp_path / "tank" / "vda.raw"))


@pytest.fixture
def state(tmp_path: Path, guest: EquippedGuest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of the guest's TPM."""
    monkeypatch.setattr(tpm_state, "SWTPM", tmp_path / "swtpm")
    path = tmp_path / "swtpm" / guest.uuid / "tpm2" / "tpm2-00.permall"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"keys")
    return path


@pytest.fixture
def store(tmp_path: Path, guest: EquippedGuest, state: Path) -> Store:
    table = [
        mounts.Mount(1, 0, "/", "/", ""),
        mounts.Mount(2, 1, "/", f"{tmp_path}/tank", "tank/web"),
    ]
    places = [DiskLocation("tank/web", "vda.raw")]
    return lambda: definition.store(guest, tmp_path / "point", places, table)


def test_the_same_files_in_the_point_and_in_the_dataset(
    tmp_path: Path, guest: EquippedGuest, store: Store
) -> None:
    nvram = tmp_path / "VARS.fd"
    nvram.write_bytes(b"boot order")
    guest.nvram = str(nvram)
    assert store() is None
    for directory in (tmp_path / "point", tmp_path / "tank" / ".zvmsnap" / "web"):
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert set(files) == {"domain.xml", "persistent.xml", "nvram.fd", "tpm.tar"}
        assert (files["nvram.fd"], b"keys" in files["tpm.tar"]) == (b"boot order", True)
        assert directory.stat().st_mode & 0o777 == 0o700


def test_what_is_no_more_is_not_left_in_the_dataset(
    tmp_path: Path, guest: EquippedGuest, store: Store
) -> None:
    store()
    guest.devices = ""
    assert store() is None
    for directory in (tmp_path / "point", tmp_path / "tank" / ".zvmsnap" / "web"):
        assert {path.name for path in directory.iterdir()} == {"domain.xml", "persistent.xml"}


def test_a_tpm_that_cannot_be_captured_costs_no_point(
    tmp_path: Path, guest: EquippedGuest, store: Store
) -> None:
    guest.devices = "<tpm><backend type='passthrough'/></tpm>"
    assert store() == "the state of a TPM of type 'passthrough' cannot be captured"
    assert {path.name for path in (tmp_path / "point").iterdir()} == {
        "domain.xml",
        "persistent.xml",
    }


def folder(tmp_path: Path) -> Path:
    """Where the dataset has the definition."""
    return tmp_path / "tank" / ".zvmsnap" / "web"


def victim(tmp_path: Path, name: str) -> Path:
    """A directory outside of the dataset, to which its owner puts a link."""
    directory = tmp_path / name
    directory.mkdir(mode=0o755)
    (directory / "domain.xml").write_text("of the host")
    return directory


@pytest.mark.parametrize("which", [".zvmsnap", ".zvmsnap/web"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_dataset_leads_nowhere(
    tmp_path: Path,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    which: str,
    dangling: bool,
) -> None:
    outside = victim(tmp_path, "outside")
    link = tmp_path / "tank" / which
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "nothing" if dangling else outside)
    assert store() is None
    assert "is a symlink, or no directory; not followed" in caplog.text
    assert [path.name for path in outside.iterdir()] == ["domain.xml"]
    assert (outside / "domain.xml").read_text() == "of the host"
    assert not (tmp_path / "nothing").exists()
    assert outside.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "point" / "domain.xml").exists()


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path, store: Store) -> None:
    store()
    outside = victim(tmp_path, "outside") / "domain.xml"
    (folder(tmp_path) / "domain.xml").unlink()
    (folder(tmp_path) / "domain.xml").symlink_to(outside)
    store()
    assert outside.read_text() == "of the host"
    assert not (folder(tmp_path) / "domain.xml").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
@pytest.mark.parametrize("which", [".zvmsnap", ".zvmsnap/web"])
def test_nothing_is_put_into_a_directory_of_the_datasets_owner(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    """Passwords are in the XML."""
    own = tmp_path / "tank" / which
    own.mkdir(parents=True)
    os.chown(own, 1000, 1000)
    store()
    assert "is another user's directory" in caplog.text
    assert [path.name for path in own.rglob("*")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_the_files_in_the_dataset_are_roots(tmp_path: Path, store: Store) -> None:
    os.chown(tmp_path / "tank", 1000, 1000)
    folder(tmp_path).mkdir(parents=True, mode=0o755)
    store()
    for path in (folder(tmp_path).parent, folder(tmp_path), *folder(tmp_path).iterdir()):
        assert path.stat().st_uid == 0
        assert path.stat().st_mode & 0o077 == 0


def test_the_dataset_is_not_reached_through_a_link(tmp_path: Path, store: Store) -> None:
    """A mount below a directory that is somebody's, who moves that away and links it."""
    (tmp_path / "tank").rename(tmp_path / "elsewhere")
    (tmp_path / "tank").symlink_to(tmp_path / "elsewhere")
    store()
    assert not (tmp_path / "elsewhere" / ".zvmsnap").exists()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(victim(path.parent, "outside") / "domain.xml")


def endless(path: Path) -> None:
    path.touch()
    os.truncate(path, (64 << 20) + 1)


def no_device(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (fifo, "is no regular file"),
        (link, "is a symlink; not followed"),
        (endless, "is larger than 64 MiB"),
        (no_device, "is no regular file"),
    ],
)
def test_firmware_variables_that_are_none(
    tmp_path: Path, guest: EquippedGuest, store: Store, make: Callable[[Path], None], says: str
) -> None:
    """Neither waited for, nor read from elsewhere, nor without end; and the point says so."""
    nvram = tmp_path / "VARS.fd"
    make(nvram)
    guest.nvram = str(nvram)
    why = store()
    assert why and why.startswith(f"firmware variables {nvram}: ") and says in why
    assert not (tmp_path / "point" / "nvram.fd").exists()
    assert (tmp_path / "point" / "tpm.tar").exists()


def test_both_are_missing(tmp_path: Path, guest: EquippedGuest, store: Store) -> None:
    guest.nvram = str(tmp_path / "VARS.fd")
    fifo(tmp_path / "VARS.fd")
    guest.devices = "<tpm><backend type='passthrough'/></tpm>"
    why = store()
    assert why and why.endswith("; the state of a TPM of type 'passthrough' cannot be captured")


def test_firmware_variables_that_were_not_made_yet(
    tmp_path: Path, guest: EquippedGuest, store: Store
) -> None:
    guest.nvram = str(tmp_path / "VARS.fd")
    assert store() is None


def test_put_firmware_variables_back(tmp_path: Path) -> None:
    path = tmp_path / "VARS.fd"
    path.write_bytes(b"of now")
    path.chmod(0o640)
    definition.put_nvram(b"of then", Nvram("file", str(path)), [tmp_path])
    assert path.read_bytes() == b"of then"


def test_firmware_variables_are_not_written_through_a_link(tmp_path: Path) -> None:
    path = tmp_path / "VARS.fd"
    link(path)
    definition.put_nvram(b"of then", Nvram("file", str(path)))
    assert (tmp_path / "outside" / "domain.xml").read_text() == "of the host"
    assert (path.read_bytes(), path.is_symlink()) == (b"of then", False)


@pytest.mark.parametrize("to", ["{}/zfs/nvram", "../tmp/../zfs/nvram", "second"])
def test_an_administrator_moved_the_firmware_variables_by_a_link(
    tmp_path: Path, guest: EquippedGuest, store: Store, to: str
) -> None:
    moved = tmp_path / "zfs" / "nvram"
    moved.mkdir(parents=True)
    (moved / "VARS.fd").write_bytes(b"boot order")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu" / "second").symlink_to(moved)
    (tmp_path / "qemu" / "nvram").symlink_to(to.format(tmp_path))
    guest.nvram = str(tmp_path / "qemu" / "nvram" / "VARS.fd")
    assert store() is None
    assert (tmp_path / "point" / "nvram.fd").read_bytes() == b"boot order"
    definition.put_nvram(b"of then", Nvram("file", guest.nvram))
    assert (moved / "VARS.fd").read_bytes() == b"of then"
    assert (tmp_path / "qemu" / "nvram").is_symlink()


def test_links_to_firmware_variables_that_have_no_end(
    tmp_path: Path, guest: EquippedGuest, store: Store
) -> None:
    (tmp_path / "nvram").symlink_to("nvram")
    guest.nvram = str(tmp_path / "nvram" / "VARS.fd")
    why = store()
    assert why and "is behind too many symlinks" in why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
@pytest.mark.parametrize("nvram", ["nvram/VARS.fd", "nvram/in/VARS.fd", "own/in/VARS.fd"])
def test_a_guests_owner_links_no_firmware_variables(
    tmp_path: Path, guest: EquippedGuest, store: Store, nvram: str
) -> None:
    """Neither those of another guest, nor by a link of root's to a place that is the owner's."""
    outside = tmp_path / "outside"
    (outside / "in").mkdir(parents=True)
    for directory in (outside, outside / "in"):
        (directory / "VARS.fd").write_bytes(b"of another")
    (tmp_path / "nvram").symlink_to(outside)
    os.chown(tmp_path / "nvram", 1000, 1000, follow_symlinks=False)
    (tmp_path / "own").symlink_to("nvram")
    guest.nvram = str(tmp_path / nvram)
    why = store()
    assert why and "nvram is a symlink, or no directory; not followed" in why
    with pytest.raises(OSError, match="not followed"):
        definition.put_nvram(b"of then", Nvram("file", guest.nvram))
    assert {path.read_bytes() for path in outside.rglob("VARS.fd")} == {b"of another"}


@pytest.mark.parametrize(
    "path",
    ["{}/outside/domain.xml", "{}/in/../outside/domain.xml", "{}/in/link/domain.xml", "{}/in/.."],
)
def test_firmware_variables_stay_below_their_directories(tmp_path: Path, path: str) -> None:
    victim(tmp_path, "outside")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside")
    nvram = Nvram("file", path.format(tmp_path))
    with pytest.raises(OSError, match=r"outside of what it may be in|names nothing|not followed"):
        definition.put_nvram(b"of then", nvram, [tmp_path / "in"])
    assert (tmp_path / "outside" / "domain.xml").read_text() == "of the host"


def test_no_device_is_written_to_that_may_be_anybodys(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a device"):
        definition.put_nvram(b"of then", Nvram("block", "/dev/null"), [tmp_path])
    with pytest.raises(OSError, match="is no block device"):
        definition.put_nvram(b"of then", Nvram("block", "/dev/null"))


def test_tpm_state_stays_below_its_directories(tmp_path: Path, store: Store) -> None:
    store()
    outside = victim(tmp_path, "outside")
    source = f"<source type='dir' path='{outside}'/>"
    tpm = f"<tpm><backend type='emulator'>{source}</backend></tpm>"
    xml = f"<domain><devices>{tpm}</devices></domain>"
    with pytest.raises(OSError, match=r"outside of what it may be in"):
        definition.put_firmware(tmp_path / "point", xml, "u", [tmp_path / "swtpm"])
    assert [path.name for path in outside.iterdir()] == ["domain.xml"]


@pytest.mark.parametrize("make", [fifo, link, endless, no_device])
def test_what_a_sender_put_in_the_place_of_a_file_is_not_read(
    tmp_path: Path, store: Store, make: Callable[[Path], None]
) -> None:
    store()
    directory = tmp_path / "point"
    for name in ("domain.xml", "persistent.xml"):
        (directory / name).unlink()
    make(directory / "persistent.xml")
    with pytest.raises(OSError, match=r"persistent.xml is "):
        definition.stored(directory, "persistent.xml")
