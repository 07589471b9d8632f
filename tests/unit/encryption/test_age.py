"""Files are encrypted and decrypted by the real age(1), if it is installed."""

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from zvmsnap.common.errors import EncryptionFailed
from zvmsnap.encryption import age
from zvmsnap.encryption.age import Recipients

pytestmark = pytest.mark.skipif(not shutil.which("age-keygen"), reason="apt install age")

DATA = os.urandom(200_000) + bytes(3 << 20) + b"x" + bytes(50_000)


def key(path: Path) -> str:
    """Make an identity; its public key."""
    done = subprocess.run(["age-keygen", "-o", path], stderr=subprocess.PIPE, check=True)
    return done.stderr.decode().split()[-1]


@pytest.fixture
def recipients(tmp_path: Path) -> Recipients:
    return Recipients((key(tmp_path / "key"),))


@pytest.fixture
def encrypted(tmp_path: Path, recipients: Recipients) -> Path:
    path = tmp_path / "f.zst.age"
    age.encrypt(io.BytesIO(DATA), path, recipients)
    return path


def test_there_and_back(tmp_path: Path, encrypted: Path) -> None:
    identity = str(tmp_path / "key")
    age.decrypt(encrypted, tmp_path / "f", identity)
    assert (tmp_path / "f").read_bytes() == DATA == age.decrypted(encrypted, identity, len(DATA))
    # Zeros take no room, neither packed nor unpacked.
    assert encrypted.stat().st_size < 210_000
    assert (tmp_path / "f").stat().st_blocks * 512 < 300_000
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert b"x" * 16 not in encrypted.read_bytes()


def test_by_hand(tmp_path: Path, encrypted: Path) -> None:
    """As the documents say."""
    if not shutil.which("zstd"):
        pytest.skip("apt install zstd")
    command = f"age -d -i {tmp_path}/key {encrypted} | zstd -d --sparse -o {tmp_path}/f"
    subprocess.run(["sh", "-c", command], check=True)
    assert (tmp_path / "f").read_bytes() == DATA


def test_recipients_of_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "team"
    listed.write_text(f"# ours\n{key(tmp_path / 'a')}\n{key(tmp_path / 'b')}\n")
    recipients = Recipients(file=str(listed))
    digest = recipients.digest()
    age.encrypt(io.BytesIO(DATA), tmp_path / "f.zst.age", recipients)
    for name in "ab":
        assert age.decrypted(tmp_path / "f.zst.age", str(tmp_path / name), 1 << 30) == DATA
    listed.write_text(key(tmp_path / "c"))
    assert recipients.digest() != digest
    listed.unlink()
    with pytest.raises(EncryptionFailed, match=r"team: cannot be read: No such file"):
        recipients.digest()


@pytest.mark.parametrize("kept", [0, 10, 300, 100_000, -1])
def test_what_is_cut_off(tmp_path: Path, encrypted: Path, kept: int) -> None:
    encrypted.write_bytes(encrypted.read_bytes()[:kept])
    refused(tmp_path, encrypted, "f.zst.age: age failed: failed to ")


def test_what_is_changed(tmp_path: Path, encrypted: Path) -> None:
    data = bytearray(encrypted.read_bytes())
    data[100_000] ^= 1
    encrypted.write_bytes(data)
    refused(tmp_path, encrypted, "failed to decrypt and authenticate payload chunk")


def test_the_wrong_identity(tmp_path: Path, encrypted: Path) -> None:
    key(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "key")
    refused(tmp_path, encrypted, "no identity matched any of the recipients")
    (tmp_path / "key").unlink()
    refused(tmp_path, encrypted, "no such file or directory")
    with pytest.raises(EncryptionFailed, match="is encrypted: say --identity FILE"):
        age.decrypt(encrypted, tmp_path / "f", "")


def test_what_others_have_encrypted(tmp_path: Path, recipients: Recipients) -> None:
    """Who knows the public key can encrypt anything: it is refused, and nothing hangs."""
    path = tmp_path / "f.zst.age"
    frame = zstandard.compress(bytes(100))
    for given, why in (
        (b"no zstd", "f.zst.age: is damaged"),
        (os.urandom(5 << 20), "f.zst.age: a"),
        (frame + os.urandom(5 << 20), "f.zst.age: "),
    ):
        subprocess.run(["age", *recipients.words(), "-o", path], input=given, check=True)
        refused(tmp_path, path, why)


def test_what_unpacks_to_too_much(tmp_path: Path, encrypted: Path) -> None:
    with pytest.raises(EncryptionFailed, match="unpacks to more than it can be"):
        age.decrypted(encrypted, str(tmp_path / "key"), len(DATA) - 1)


@pytest.mark.parametrize(
    ("recipients", "why"),
    [
        (Recipients(("age1bad",)), "malformed recipient"),
        (Recipients(file="/nonexistent/team"), "failed to open recipient file"),
    ],
)
def test_recipients_that_are_none(tmp_path: Path, recipients: Recipients, why: str) -> None:
    with pytest.raises(EncryptionFailed, match=f"f.zst.age: age failed: .*{why}"):
        age.encrypt(io.BytesIO(DATA), tmp_path / "f.zst.age", recipients)
    assert list(tmp_path.iterdir()) == []


def test_age_is_not_installed(
    tmp_path: Path, encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    why = "age cannot be run (No such file or directory): apt install age"
    refused(tmp_path, encrypted, why)


def refused(tmp_path: Path, encrypted: Path, why: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EncryptionFailed) as caught:
        age.decrypt(encrypted, tmp_path / "f", str(tmp_path / "key"))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
