"""A guest that is off is backed up as its images are; again only if they have changed."""

from pathlib import Path

import pytest

from tests.fakes.backup_scene import Scene
from tests.fakes.images import run_qemu_img, write
from zvmsnap.archive.directory import StoredBackup, described
from zvmsnap.archive.manifest import StoredFile
from zvmsnap.backup.of_guest import Wanted, back_up_guest
from zvmsnap.backup.writing import BackupOptions
from zvmsnap.common.errors import BackupFailed, BackupImpossible
from zvmsnap.common.lockfile import is_held


@pytest.fixture
def scene_off(scene: Scene, tmp_path: Path) -> Scene:
    """The disk is a qcow2 image on another, on no ZFS; the guest is off."""
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"base" * 262144)
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top)
    write(top, 7, 128)
    scene.guest.live = scene.guest.persistent = {"vda": str(top)}
    scene.guest.active = False
    return scene


def back_up(scene: Scene, **options: object) -> StoredBackup | None:
    return back_up_guest(
        scene.config,
        scene.host,
        scene.guest,
        scene.directory,
        BackupOptions(**options),  # type: ignore[arg-type]
        Wanted.BEST,
    )


def test_again_only_if_something_has_changed(scene_off: Scene, tmp_path: Path) -> None:
    first = back_up(scene_off)
    assert first and first.manifest.way == "offline" and first.manifest.consistency == "offline"
    expected = b"base" * 32768 + bytes([7]) * 65536
    assert scene_off.content(first)[: len(expected)] == expected
    assert not first.manifest.disks[0].depends
    # The time of a file says nothing.
    (tmp_path / "top.qcow2").touch()
    assert back_up(scene_off) is None
    assert scene_off.nothing_left()
    write(tmp_path / "top.qcow2", 8, 256)
    second = back_up(scene_off)
    assert second and second.manifest.level == "inc"
    assert scene_off.content(second)[256 << 10 : 320 << 10] == bytes([8]) * 65536
    assert back_up(scene_off, level="full") is not None


def test_the_guest_is_free_when_checksums_are_taken(
    scene_off: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def noting(path: Path) -> StoredFile:
        held.append(is_held(scene_off.config.locks_dir, scene_off.guest.uuid))
        return described(path)

    monkeypatch.setattr("zvmsnap.backup.writing.described", noting)
    assert back_up(scene_off)
    assert held[-1] is False


def test_another_definition_is_a_change(scene_off: Scene) -> None:
    assert back_up(scene_off)
    scene_off.guest.equipment = "<watchdog model='itco'/>"
    again = back_up(scene_off)
    assert again and (again.directory / "domain.xml").read_text().count("watchdog") == 1


def test_a_guest_that_is_started_meanwhile(
    scene_off: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = iter([False, True])
    monkeypatch.setattr(scene_off.guest, "is_active", lambda: next(state, True))
    monkeypatch.setattr(scene_off.guest, "is_persistent", lambda: False)
    with pytest.raises(BackupFailed, match="was started meanwhile"):
        back_up(scene_off)
    assert scene_off.nothing_left() and scene_off.directory.read() == ([], [])


def test_a_disk_that_cannot_be_read(scene_off: Scene) -> None:
    scene_off.guest.live = scene_off.guest.persistent = {"vda": ""}
    with pytest.raises(BackupImpossible, match=r"vda is of type file, and .*-x vda"):
        back_up(scene_off)
