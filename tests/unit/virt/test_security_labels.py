import grp
import os
import pwd
from pathlib import Path

import pytest

from zvmsnap.virt import qemu_conf, security_labels


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that may have notes; trusted.* only root may set, so user.* stands in for it."""
    monkeypatch.setattr(security_labels, "_PREFIX", "user.libvirt.security.")
    path = tmp_path / "a b.qcow2"
    path.write_bytes(b"data")
    try:
        os.setxattr(path, "user.foreign", b"stays")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    return path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """To whom files were given."""
    calls: list[tuple[str, int, int]] = []
    real = os.chown

    def chown(path: str, uid: int, gid: int) -> None:
        real(path, -1 if uid < 2**31 else uid, -1)  # numbers that no owner can have are refused
        calls.append((path, uid, gid))

    monkeypatch.setattr(os, "chown", chown)
    return calls


@pytest.mark.parametrize(
    ("notes", "owner"),
    [
        pytest.param({}, None, id="never used"),
        pytest.param({"dac": b"+64055:+108", "ref_dac": b"1"}, (64055, 108), id="in use"),
        pytest.param({"dac": b"+0:+0\0", "timestamp_dac": b"5"}, (0, 0), id="with an end"),
        pytest.param({"selinux": b"system_u:object_r:x"}, None, id="only a label"),
        pytest.param({"dac": b"root:root"}, None, id="names"),
        pytest.param({"dac": b""}, None, id="empty"),
        pytest.param({"dac": b"+1:+2 and more"}, None, id="more"),
        pytest.param({"dac": b"+-1:+0"}, None, id="negative"),
        pytest.param({"dac": b"+99999999999999999999:+0"}, None, id="no number of anybody"),
    ],
)
def test_give_back(
    image: Path,
    given: list[tuple[int, int, int]],
    notes: dict[str, bytes],
    owner: tuple[int, int] | None,
) -> None:
    for name, value in notes.items():
        os.setxattr(image, f"user.libvirt.security.{name}", value)
    with image.open("rb") as file:
        security_labels.give_back(file.fileno())
        assert given == ([(file.fileno(), *owner)] if owner else [])
    assert os.listxattr(image) == ["user.foreign"]
    assert image.read_bytes() == b"data"


def domain(seclabel: str) -> str:
    return f"<domain><seclabel model='apparmor'><label>x</label></seclabel>{seclabel}</domain>"


DAC = "<seclabel type='dynamic' model='dac' relabel='{relabel}'><label>{label}</label></seclabel>"
ROOT = (pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name)


@pytest.mark.parametrize("gives", [True, False])
@pytest.mark.parametrize("relabel", ["yes", "no"])
@pytest.mark.parametrize(
    ("label", "owner"),
    [("+64055:+108", (64055, 108)), ("64055:108", (64055, 108)), (":".join(ROOT), (0, 0))],
)
def test_owner_for_qemu(
    monkeypatch: pytest.MonkeyPatch,
    gives: bool,
    relabel: str,
    label: str,
    owner: tuple[int, int],
) -> None:
    monkeypatch.setattr(qemu_conf, "gives_files_to_qemu", lambda: gives)
    xml = domain(DAC.format(relabel=relabel, label=label))
    by_libvirt = gives and relabel == "yes"
    assert security_labels.owner_for_qemu(xml) == (None if by_libvirt else owner)


@pytest.mark.parametrize(
    ("seclabel", "says"),
    [
        ("", "does not say as which user QEMU runs"),
        (DAC.format(relabel="yes", label="+1"), "does not say as which user"),
        (DAC.format(relabel="yes", label="no-such:+1"), "names no-such, whom this host"),
        (DAC.format(relabel="yes", label="+1:no-such"), "names no-such, whom this host"),
    ],
)
def test_owner_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, seclabel: str, says: str) -> None:
    monkeypatch.setattr(qemu_conf, "gives_files_to_qemu", lambda: False)
    with pytest.raises(ValueError, match=says):
        security_labels.owner_for_qemu(domain(seclabel))
