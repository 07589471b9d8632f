from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.images import make_base
from zvmsnap.points import definition
from zvmsnap.virt import tpm_state
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
