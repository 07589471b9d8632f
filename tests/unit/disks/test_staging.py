import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from zvmsnap.common.errors import CommitFailed, NoSpace, StagingUnusable
from zvmsnap.disks import staging
from zvmsnap.disks.staging import StagingDir, StagingSpace
from zvmsnap.zfs.mounts import Mount

UUID = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that everybody can pass; pytest's own are private."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        yield Path(directory)


def test_no_two_captures_have_one_name(tmp_path: Path) -> None:
    fresh = [StagingDir.fresh(tmp_path, UUID) for _ in range(50)]
    assert len({capture.path for capture in fresh}) == 50
    assert list(tmp_path.iterdir()) == []
    for capture in fresh[:3]:
        capture.make()
    assert staging.staging_dirs(tmp_path) == sorted(fresh[:3], key=lambda capture: capture.path)


def test_made_and_removed(tmp_path: Path) -> None:
    capture = StagingDir.fresh(tmp_path / "var" / "staging", UUID)
    capture.remove()
    capture.make()
    capture.make()
    capture.overlay("vdb").touch()
    capture.overlay("vda").touch()
    capture.memory.touch()
    (capture.path / "stray.qcow2").touch()
    assert capture.overlays() == [capture.overlay("vda"), capture.overlay("vdb")]
    assert capture.memory.parent == capture.point
    for overlay in capture.overlays():
        overlay.unlink()
    capture.remove()
    assert capture.overlays() == []
    assert list((tmp_path / "var" / "staging").iterdir()) == []


def test_a_guests_newest_writes_are_never_removed(tmp_path: Path) -> None:
    capture = StagingDir.fresh(tmp_path, UUID)
    capture.make()
    capture.memory.touch()
    capture.overlay("vda").write_bytes(b"newest")
    with pytest.raises(CommitFailed, match=f"kept, .*{capture.overlay('vda')}$"):
        capture.remove()
    assert capture.overlay("vda").read_bytes() == b"newest"
    assert capture.memory.exists()


def test_overlays_are_reachable_and_ram_is_private(tmp_path: Path) -> None:
    capture = StagingDir.fresh(tmp_path / "staging", UUID)
    capture.make()
    assert capture.path.stat().st_mode & 0o777 == 0o711
    assert capture.path.parent.stat().st_mode & 0o777 == 0o711
    assert capture.point.stat().st_mode & 0o777 == 0o700


def test_no_captures_where_staging_is_missing(tmp_path: Path) -> None:
    assert staging.staging_dirs(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        pytest.param(f"{UUID}.0123abcd", True, id="a capture"),
        pytest.param("lost+found", False, id="of the file system"),
        pytest.param("vault", False, id="another of our directories"),
        pytest.param(UUID, False, id="no number"),
        pytest.param(f"{UUID}.0123abc", False, id="number too short"),
        pytest.param(f"{UUID}.0123abcd.old", False, id="renamed by hand"),
        pytest.param(f"{UUID.upper()}.0123abcd", False, id="not as libvirt prints it"),
    ],
)
def test_whose_directory(tmp_path: Path, name: str, ours: bool) -> None:
    (tmp_path / name).mkdir()
    assert [capture.path.name for capture in staging.staging_dirs(tmp_path)] == [name] * ours


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/staging/{UUID}.0123abcd/vda.zvmsnap.qcow2", True),
        (f"/moved elsewhere/{UUID}.0123abcd/vda.zvmsnap.qcow2", True),
        (f"/staging/{UUID}.0123abcd/vda.qcow2", False),
        (f"/staging/{UUID}.0123abcd/vda.zvmsnap.qcow2.bak", False),
        (f"/staging/{UUID}.0123abcd/point/vda.zvmsnap.qcow2", False),
        ("/staging/x/vda.zvmsnap.qcow2", False),
        ("/tank/web/vda.zvmsnap.qcow2", False),
        ("", False),
    ],
)
def test_is_overlay(path: str, expected: bool) -> None:
    assert staging.is_overlay(path) is expected


def table(mountpoint: Path, dataset: str) -> list[Mount]:
    return [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/", str(mountpoint), dataset)]


@pytest.mark.parametrize(
    ("dataset", "refused"),
    [
        pytest.param("tank/web", True, id="on a dataset of this snapshot"),
        pytest.param("tank/other", False, id="on another dataset"),
        pytest.param("", False, id="on no ZFS"),
    ],
)
def test_staging_inside_the_snapshot(reachable: Path, dataset: str, refused: bool) -> None:
    directory = reachable / "deep" / "staging"
    known, mounts = frozenset({"tank/web"}), table(reachable, dataset)
    if not refused:
        staging.check_usable(directory, known, mounts)
        assert directory.is_dir()
        return
    with pytest.raises(StagingUnusable, match="is on tank/web, which is one of the snapshot"):
        staging.check_usable(directory, known, mounts)
    assert not directory.exists()


@pytest.mark.parametrize(("kind", "refused"), [("tmpfs", True), ("ramfs", True), ("ext4", False)])
def test_staging_in_ram(reachable: Path, kind: str, refused: bool) -> None:
    root, mounted = table(reachable, "")
    mounts = [root, dataclasses.replace(mounted, kind=kind)]
    directory = reachable / "staging"
    if not refused:
        staging.check_usable(directory, frozenset(), mounts)
        return
    with pytest.raises(StagingUnusable, match=f"is on {kind}, which is RAM: a power cut would"):
        staging.check_usable(directory, frozenset(), mounts)
    assert not directory.exists()


def test_staging_behind_a_symlink_is_checked_where_it_leads_to(reachable: Path) -> None:
    (reachable / "inside").mkdir()
    (reachable / "staging").symlink_to(reachable / "inside")
    with pytest.raises(StagingUnusable, match="is on tank/web"):
        staging.check_usable(
            reachable / "staging", frozenset({"tank/web"}), table(reachable / "inside", "tank/web")
        )


@pytest.mark.parametrize(
    ("mode", "usable"), [(0o700, False), (0o744, False), (0o710, True), (0o711, True)]
)
@pytest.mark.parametrize("which", ["staging", "above"])
def test_staging_that_qemu_cannot_reach(
    reachable: Path, mode: int, usable: bool, which: str
) -> None:
    above, directory = reachable / "above", reachable / "above" / "staging"
    directory.mkdir(parents=True)
    for each in (above, directory):
        each.chmod(0o711)
    closed = above if which == "above" else directory
    closed.chmod(mode)
    if usable:
        staging.check_usable(directory, frozenset(), table(reachable, ""))
        return
    with pytest.raises(StagingUnusable, match=f"chmod o\\+x {closed}$"):
        staging.check_usable(directory, frozenset(), table(reachable, ""))


@pytest.mark.parametrize(
    ("free_mib", "rams_mib", "refused"),
    [
        pytest.param(300, (100, 100), (), id="just enough"),
        pytest.param(299, (100, 100), (100,), id="one MiB too little for the second"),
        pytest.param(160, (200, 100), (200,), id="a smaller guest after a larger one"),
        pytest.param(0, (1,), (1,), id="nothing free"),
    ],
)
def test_space(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    rams_mib: tuple[int, ...],
    refused: tuple[int, ...],
) -> None:
    answer = SimpleNamespace(f_bavail=free_mib << 8, f_frsize=4096, f_bfree=1 << 40)
    monkeypatch.setattr(os, "statvfs", lambda path: answer)
    space = StagingSpace(tmp_path, 50 << 20)
    failed = []
    for number, ram_mib in enumerate(rams_mib):
        try:
            space.reserve(str(number), ram_mib << 20)
        except NoSpace as error:
            failed.append(ram_mib)
            assert f"{ram_mib + 50} MiB" in str(error)
            assert str(tmp_path) in str(error)
    assert tuple(failed) == refused


def test_space_for_the_next_level_of_a_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "free_bytes", lambda _path: 100)
    space = StagingSpace(tmp_path, 10)
    space.reserve("web", 50)
    space.reserve("web", 90)
    with pytest.raises(NoSpace):
        space.reserve("db", 0)
    space.reserve("web", 0)
    space.reserve("db", 80)


def test_no_capture_behind_a_symlink_and_none_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{UUID}.00000001").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{UUID}.00000002").touch()
    assert staging.staging_dirs(tmp_path) == []


@pytest.mark.parametrize(("cpus", "dumps"), [(None, 1), (1, 1), (2, 1), (6, 3), (16, 8), (256, 8)])
def test_dumps_at_once_by_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int | None, dumps: int
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_arguments, **_named: "0\n")
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert staging.parallel_dumps(tmp_path) == dumps


def test_one_dump_at_once_on_a_disk_that_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_arguments, **_named: "1\n")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert staging.parallel_dumps(tmp_path) == 1
