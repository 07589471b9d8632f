import io
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import TpmUncapturable, VaultDamaged
from zvmsnap.virt import tpm_state

UUID = "c0ffee00-0000-4000-8000-000000000001"
PERMALL, VOLATILE = "tpm2-00.permall", "tpm2-00.volatilestate"


def xml(backend: str) -> str:
    return f"<domain><devices><tpm model='tpm-crb'>{backend}</tpm></devices></domain>"


EMULATED = xml("<backend type='emulator' version='2.0'/>")
NONE = "<domain><devices/></domain>"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which EMULATED keeps its state, with some state in it."""
    monkeypatch.setattr(tpm_state, "SWTPM", tmp_path)
    home = tmp_path / UUID / "tpm2"
    home.mkdir(parents=True)
    (home / PERMALL).write_bytes(b"keys")
    (home / PERMALL).chmod(0o640)
    (home / ".lock").touch()
    return home


def members(packed: bytes | None) -> dict[str, bytes]:
    assert packed is not None
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            files[member.name] = content.read()
        return files


@pytest.mark.parametrize(
    ("backend", "state"),
    [
        pytest.param("type='emulator' version='2.0'/>", tpm_state.SWTPM / UUID / "tpm2", id="2.0"),
        pytest.param(
            "type='emulator' version='1.2'/>", tpm_state.SWTPM / UUID / "tpm1.2", id="1.2"
        ),
        pytest.param(
            "type='emulator' version='2.0'><encryption secret='s'/></backend>",
            tpm_state.SWTPM / UUID / "tpm2",
            id="encrypted",
        ),
        pytest.param(
            "type='emulator' version='1.2'><source type='dir' path='/a/b'/></backend>",
            Path("/a/b"),
            id="a directory of its own",
        ),
    ],
)
def test_path_of_its_state(backend: str, state: Path) -> None:
    assert tpm_state.state_of(xml(f"<backend {backend}"), UUID) == tpm_state.State(state)


def test_path_of_its_single_file() -> None:
    backend = "<backend type='emulator'><source type='file' path='/a/b'/></backend>"
    assert tpm_state.state_of(xml(backend), UUID) == tpm_state.State(Path("/a/b"), is_file=True)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", "'passthrough'"),
        ("<backend type='external'><source type='unix' path='/s'/></backend>", "'external'"),
        ("<backend type='emulator'><source type='nbd' path='/s'/></backend>", "source 'nbd' '/s'"),
        ("<backend type='emulator'><source type='dir' path='s'/></backend>", "source 'dir' 's'"),
        ("", "type ''"),
    ],
)
def test_what_cannot_be_captured(tmp_path: Path, backend: str, says: str) -> None:
    for ask in (
        lambda: tpm_state.state_of(xml(backend), UUID),
        lambda: tpm_state.archive(xml(backend), UUID),
        lambda: tpm_state.put_back(b"", xml(backend), UUID),
    ):
        with pytest.raises(TpmUncapturable, match=says):
            ask()
    assert says in str(tpm_state.why_stale(xml(backend), UUID, tmp_path / "tpm.tar"))


def test_none_and_none_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_state, "SWTPM", tmp_path)
    assert tpm_state.archive(NONE, UUID) is None
    assert tpm_state.archive(EMULATED, UUID) is None
    (tmp_path / UUID / "tpm2").mkdir(parents=True)
    assert tpm_state.archive(EMULATED, UUID) is None
    assert tpm_state.why_stale(EMULATED, UUID, tmp_path / "tpm.tar") is None


def test_only_files_of_the_state_are_archived(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    (home / "tpm2-01.permall").symlink_to(secret)
    (home / "TMP2-00.permall").write_text("half written")
    (home / "tpm2-02.permall").mkdir()
    os.mkfifo(home / "tpm2-03.permall")
    (home / VOLATILE).write_bytes(b"registers")
    assert members(tpm_state.archive(EMULATED, UUID)) == {PERMALL: b"keys", VOLATILE: b"registers"}


def test_a_symlink_in_place_of_its_state_is_not_followed(home: Path, tmp_path: Path) -> None:
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TpmUncapturable, match=str(home)):
        tpm_state.archive(EMULATED, UUID)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / PERMALL)
    backend = f"<backend type='emulator'><source type='file' path='{link}'/></backend>"
    with pytest.raises(TpmUncapturable, match=str(link)):
        tpm_state.archive(xml(backend), UUID)


def test_its_size_is_bounded(home: Path) -> None:
    with (home / VOLATILE).open("wb") as file:
        file.truncate((16 << 20) - 4)
    packed = tpm_state.archive(EMULATED, UUID)
    assert packed is not None and len(packed) > 16 << 20
    with (home / VOLATILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(TpmUncapturable, match="is larger than 16 MiB"):
        tpm_state.archive(EMULATED, UUID)


def test_why_stale(home: Path, tmp_path: Path) -> None:
    stored = tmp_path / "tpm.tar"
    stored.write_bytes(tpm_state.archive(EMULATED, UUID) or b"")
    (home / PERMALL).write_bytes(b"keys")
    assert tpm_state.why_stale(EMULATED, UUID, stored) is None
    (home / PERMALL).write_bytes(b"KEYS")
    assert (
        tpm_state.why_stale(EMULATED, UUID, stored)
        == "the TPM's state changed while RAM was written"
    )
    stored.unlink()
    assert tpm_state.why_stale(EMULATED, UUID, stored) is not None


def test_put_back(home: Path, tmp_path: Path) -> None:
    stored = tmp_path / "tpm.tar"
    stored.write_bytes(tpm_state.archive(EMULATED, UUID) or b"")
    (home / PERMALL).write_bytes(b"newer keys")
    (home / PERMALL).chmod(0o600)
    (home / VOLATILE).touch()
    tpm_state.put_back(stored.read_bytes(), EMULATED, UUID)
    assert sorted(path.name for path in home.iterdir()) == [".lock", PERMALL]
    assert (home / PERMALL).read_bytes() == b"keys"
    status = (home / PERMALL).stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o640, os.getuid())
    assert tpm_state.archive(EMULATED, UUID) == stored.read_bytes()


def test_put_back_where_there_is_nothing(home: Path, tmp_path: Path) -> None:
    stored = tmp_path / "tpm.tar"
    stored.write_bytes(tpm_state.archive(EMULATED, UUID) or b"")
    other = "c0ffee00-0000-4000-8000-000000000002"
    tpm_state.put_back(stored.read_bytes(), EMULATED, other)
    made = tmp_path / other / "tpm2"
    assert (made / PERMALL).read_bytes() == b"keys"
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o700, 0o711)
    with pytest.raises(TpmUncapturable, match="has no TPM"):
        tpm_state.put_back(stored.read_bytes(), NONE, UUID)


def test_a_single_file(tmp_path: Path) -> None:
    path, stored = tmp_path / "state of web", tmp_path / "tpm.tar"
    definition = xml(
        f"<backend type='emulator'><source type='file' path='{path}'/></backend>",
    )
    assert tpm_state.archive(definition, UUID) is None
    path.write_bytes(b"keys")
    stored.write_bytes(tpm_state.archive(definition, UUID) or b"")
    path.write_bytes(b"newer keys")
    tpm_state.put_back(stored.read_bytes(), definition, UUID)
    assert path.read_bytes() == b"keys"
    assert sorted(tmp_path.iterdir()) == [path, stored]


def test_neither_kind_of_state_is_put_into_the_other(home: Path, tmp_path: Path) -> None:
    path, stored = tmp_path / "state", tmp_path / "tpm.tar"
    backend = f"<backend type='emulator'><source type='file' path='{path}'/></backend>"
    stored.write_bytes(tpm_state.archive(EMULATED, UUID) or b"")
    with pytest.raises(TpmUncapturable, match=f"not of the kind that the TPM keeps in {path}"):
        tpm_state.put_back(stored.read_bytes(), xml(backend), UUID)
    assert not path.exists()
    path.write_bytes(b"of a single file")
    stored.write_bytes(tpm_state.archive(xml(backend), UUID) or b"")
    with pytest.raises(TpmUncapturable, match=f"not of the kind that the TPM keeps in {home}"):
        tpm_state.put_back(stored.read_bytes(), EMULATED, UUID)
    assert (home / PERMALL).read_bytes() == b"keys"


def packed(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, uid: int = os.getuid()
) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, size, "/etc/passwd"
        member.uid, member.gid = uid, os.getgid()
        tar.addfile(member, io.BytesIO(bytes(min(size, 1024))) if size <= 1024 else None)
    return target.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no tar" * 500, id="no tar"),
        pytest.param(bytes(10240), id="a tar of nothing"),
        pytest.param(packed("../x"), id="upwards"),
        pytest.param(packed("/tmp/x"), id="absolute"),
        pytest.param(packed("a/b"), id="below"),
        pytest.param(packed(".."), id="parent"),
        pytest.param(packed(".lock"), id="the lock"),
        pytest.param(packed("x\n"), id="a line end in its name"),
        pytest.param(packed("x" * 101), id="a long name"),
        pytest.param(packed("x", tarfile.SYMTYPE, 0), id="symlink"),
        pytest.param(packed("x", tarfile.LNKTYPE, 0), id="hard link"),
        pytest.param(packed("x", tarfile.DIRTYPE, 0), id="directory"),
        pytest.param(packed("x", tarfile.CHRTYPE, 0), id="device"),
        pytest.param(packed("x", uid=2**31), id="an owner that nobody is"),
        pytest.param(packed("x", uid=-1), id="an owner that means: leave it"),
        pytest.param(packed("x", size=1 << 40), id="too large"),
        pytest.param(packed("x")[:1024] + packed("x"), id="twice"),
        pytest.param(packed("x", size=600)[:700], id="cut"),
    ],
)
def test_what_is_no_archive_of_ours_changes_nothing(
    home: Path, tmp_path: Path, content: bytes
) -> None:
    stored = tmp_path / "tpm.tar"
    stored.write_bytes(content)
    with pytest.raises(VaultDamaged):
        tpm_state.put_back(stored.read_bytes(), EMULATED, UUID)
    assert sorted(path.name for path in home.iterdir()) == [".lock", PERMALL]
    assert (home / PERMALL).read_bytes() == b"keys"


def test_a_failure_on_the_way_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "tpm.tar"
    (home / VOLATILE).touch()
    stored.write_bytes(tpm_state.archive(EMULATED, UUID) or b"")
    (home / PERMALL).write_bytes(b"newer keys")
    before = sorted(home.iterdir())
    calls = iter([None, OSError("no room")])

    def fail(descriptor: int, mode: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match="no room"):
        tpm_state.put_back(stored.read_bytes(), EMULATED, UUID)
    assert sorted(home.iterdir()) == before
    assert (home / PERMALL).read_bytes() == b"newer keys"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tpm")


@given(
    head=st.sampled_from([b"", packed("x")[:512], packed("x")[:1024], packed("x" * 99)[:300]]),
    tail=st.binary(max_size=2048),
    at=st.integers(0, 511),
)
def test_any_bytes_are_put_back_or_refused(
    scratch: Path, head: bytes, tail: bytes, at: int
) -> None:
    """Also such as begin like a real archive, with a byte of its header changed."""
    stored, home = scratch / "tpm.tar", scratch / "home" / "state"
    content = bytearray(head + tail)
    if tail and at < len(head):
        content[at] ^= tail[0]
    stored.write_bytes(content)
    definition = xml(
        f"<backend type='emulator'><source type='dir' path='{home}'/></backend>",
    )
    with suppress(VaultDamaged):
        tpm_state.put_back(stored.read_bytes(), definition, UUID)
    assert {path.name for path in scratch.iterdir()} <= {"tpm.tar", "home"}
