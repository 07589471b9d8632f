"""When libvirt's checkpoints are trusted, and what is done where they are not."""

import shutil
from pathlib import Path

import msgspec
import pytest

from tests.fakes.backup_job import FakeBackupJob
from tests.fakes.backup_scene import Scene
from tests.fakes.guest import OTHER, FakeGuest
from tests.fakes.images import run_qemu_img, write
from zvmsnap.archive.directory import IDENTITY, BackupDirectory, StoredBackup
from zvmsnap.archive.manifest import MANIFEST, Level
from zvmsnap.backup.push import back_up_running
from zvmsnap.backup.writing import BackupOptions
from zvmsnap.common import json_file
from zvmsnap.config.mode import parse_mode

CRASH = parse_mode("crash")


def back_up(
    scene: Scene, directory: BackupDirectory | None = None, level: Level | None = None
) -> StoredBackup:
    return back_up_running(
        scene.config,
        scene.host,
        scene.guest,
        directory or scene.directory,
        BackupOptions(level),
        CRASH,
    )


def names(scene: Scene) -> set[str]:
    return {each.name for each in scene.guest.checkpoints}


def compared(backup: StoredBackup, target: str = "vda") -> str:
    disk = backup.manifest.disk(target)
    assert disk
    return disk.compared


def assert_whole(scene: Scene, job: FakeBackupJob, image: Path, why: str) -> StoredBackup:
    """The next backup compares all of the disk, says why, and has a checkpoint for the next one."""
    write(image, 9, 320)
    made = back_up(scene)
    assert job.modes()["vda"] == ""
    assert compared(made) == f"all of it was compared, as {why}"
    assert made.manifest.level == "inc" and scene.content(made)[320 << 10] == 9
    assert scene.content(made)[128 << 10] == 7
    assert scene.nothing_left()
    if made.manifest.checkpoint:
        write(image, 10, 384)
        following = back_up(scene)
        assert job.modes()["vda"] == made.manifest.checkpoint
        assert scene.content(following)[384 << 10] == 10
    return made


def test_a_bitmap_that_is_broken(
    scene: Scene, job: FakeBackupJob, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after QEMU was killed, or after a restore to before the checkpoint."""
    caplog.set_level("INFO")
    known = back_up(scene).manifest.checkpoint
    job.broken.add((known, "vda"))
    scene.guest.without_bitmap.add(known)
    made = assert_whole(
        scene,
        job,
        image,
        "libvirt refuses an increment: beginning a backup: missing or broken bitmap "
        f"'{known}' for disk 'vda'",
    )
    assert made.manifest.checkpoint
    assert "all of vda is pushed and compared, as libvirt refuses an increment" in caplog.text


def test_old_ones_without_bitmaps_are_forgotten(
    scene: Scene, job: FakeBackupJob, image: Path
) -> None:
    back_up(scene)
    old = back_up(scene).manifest.checkpoint
    scene.guest.without_bitmap.add(old)
    back_up(scene)
    assert f"forget checkpoint {old}" in scene.guest.calls and old not in names(scene)


def test_of_one_without_a_bitmap_the_others_are_removed(
    scene: Scene, job: FakeBackupJob, image: Path
) -> None:
    """Nobody would know of these once libvirt has forgotten it."""
    back_up(scene)
    old = back_up(scene).manifest.checkpoint
    assert scene.guest.qemu
    nodes = scene.guest.qemu.nodes
    scene.guest.without_bitmap.add(old)
    nodes.add_bitmap("libvirt-1-format", old)
    nodes.add_bitmap("libvirt-1-format", "tuesday")
    back_up(scene)
    assert nodes.bitmaps == {("libvirt-1-format", "tuesday")} and old not in names(scene)


def test_what_is_refused_now_stays_known(
    scene: Scene, job: FakeBackupJob, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bitmap is in use: libvirt knows of it until another backup can remove it."""
    first, old = (back_up(scene).manifest.checkpoint for _ in range(2))
    unpublished = f"{old[:-8]}01234567"
    known = scene.guest.checkpoints[0]
    scene.guest.checkpoints.append(type(known)(unpublished, 0, {"vda": unpublished}))
    assert scene.guest.qemu
    nodes = scene.guest.qemu.nodes
    scene.guest.without_bitmap.add(old)
    nodes.add_bitmap("libvirt-1-format", old, busy=True)
    third = back_up(scene).manifest.checkpoint
    assert names(scene) == {first, old, third}
    assert f"forget checkpoint {old}" not in scene.guest.calls
    assert nodes.bitmaps == {("libvirt-1-format", old)}
    assert (
        f"the next backup lets libvirt forget checkpoint {old}: QEMU's block-dirty-bitmap-remove: "
        f"QEMU refused: Dirty bitmap '{old}' is currently in use" in caplog.text
    )
    scene.guest.without_bitmap.clear()
    fourth = back_up(scene).manifest.checkpoint
    assert names(scene) == {first, fourth}


def test_a_checkpoint_that_is_gone(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    known = back_up(scene).manifest.checkpoint
    scene.guest.checkpoints.clear()
    assert_whole(scene, job, image, f"libvirt has checkpoint {known} no more")


def test_a_backup_without_one(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    """Of an older version, or made while the guest was off."""
    made = back_up(scene)
    manifest = msgspec.structs.replace(made.manifest, checkpoint="")
    json_file.write(made.directory / MANIFEST, manifest)
    assert_whole(scene, job, image, f"{made.name} has no checkpoint")


def test_a_disk_of_another_length(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    back_up(scene)
    run_qemu_img("resize", "-q", image, "2M")
    made = assert_whole(scene, job, image, "it was 1048576 bytes long, and is 2097152")
    disk = made.manifest.disk("vda")
    assert disk and disk.disk_bytes == 2 << 20 and len(scene.content(made)) == 2 << 20


def test_a_new_disk(scene: Scene, job: FakeBackupJob, image: Path, tmp_path: Path) -> None:
    first = back_up(scene)
    added = tmp_path / "added.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", added, "1M")
    write(added, 5)
    scene.guest.live["vdb"] = str(added)
    second = back_up(scene)
    assert job.modes() == {"vda": first.manifest.checkpoint, "vdb": ""}
    assert compared(second, "vdb") == f"vdb is not in {first.name}"
    assert scene.content(second, "vdb")[0] == 5
    write(added, 6, 64)
    third = back_up(scene)
    assert job.modes() == dict.fromkeys(("vda", "vdb"), second.manifest.checkpoint)
    assert [scene.content(third, "vdb")[at << 10] for at in (0, 64)] == [5, 6]


def test_an_image_of_an_old_version(
    scene: Scene, job: FakeBackupJob, image: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M")
    scene.guest.live["vdb"] = str(old)
    first = back_up(scene)
    assert scene.guest.checkpoints[0].bitmaps.keys() == {"vda"}
    second = back_up(scene)
    assert job.modes() == {"vda": first.manifest.checkpoint, "vdb": ""}
    why = "it is qcow2 of version 0.10, which has no bitmaps"
    assert compared(second, "vdb") == f"all of it was compared, as {why}"
    run_qemu_img("amend", "-q", "-o", "compat=1.1", old)
    third = back_up(scene)
    assert compared(third, "vdb").endswith(
        f"as it is not in checkpoint {second.manifest.checkpoint}"
    )
    back_up(scene)
    assert job.modes() == dict.fromkeys(("vda", "vdb"), third.manifest.checkpoint)


def test_an_image_with_a_data_file(
    scene: Scene, job: FakeBackupJob, image: Path, tmp_path: Path
) -> None:
    apart = tmp_path / "apart.qcow2"
    options = f"data_file={tmp_path}/apart.raw"
    run_qemu_img("create", "-q", "-f", "qcow2", "-o", options, apart, "1M")
    scene.guest.live["vda"] = str(apart)
    first = back_up(scene)
    write(apart, 4, 192)
    second = back_up(scene)
    assert job.modes() == {"vda": first.manifest.checkpoint}
    assert scene.content(second)[192 << 10] == 4


def test_a_raw_disk(
    scene: Scene,
    job: FakeBackupJob,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libvirt refuses a checkpoint of which it is a part."""
    raw = tmp_path / "vdb.raw"
    raw.write_bytes(b"r" * (1 << 20))
    scene.guest.live["vdb"] = str(raw)
    monkeypatch.setattr(
        scene.guest, "format_of", lambda source: "raw" if source.endswith(".raw") else "qcow2"
    )
    first = back_up(scene)
    raw.write_bytes(b"s" * (1 << 20))
    second = back_up(scene)
    assert job.modes() == {"vda": first.manifest.checkpoint, "vdb": ""}
    assert compared(second, "vdb") == "all of it was compared, as it is raw, which has no bitmaps"
    assert scene.content(second, "vdb") == b"s" * (1 << 20)
    # Alone, it has no checkpoint, and none is missing.
    del scene.guest.live["vda"]
    third = back_up(scene)
    assert (third.manifest.checkpoint, third.manifest.reason) == ("", "")
    assert job.begun[-1][1] is None


def test_a_libvirt_without_checkpoints(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    known = back_up(scene).manifest.checkpoint

    def refuses(xml: object, checkpoint: object) -> str:
        return "" if checkpoint is None else "checkpoints are not supported yet"

    job.refuses = refuses
    made = assert_whole(
        scene,
        job,
        image,
        "libvirt refuses an increment: beginning a backup: checkpoints are not supported yet",
    )
    assert made.manifest.checkpoint == "" and known in names(scene)
    assert made.manifest.reason == (
        "no checkpoint was made: beginning a backup: checkpoints are not supported yet"
    )
    assert job.begun[-1][0].find("disks/disk[@backupmode]") is None


def test_a_transient_guest(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    scene.guest.is_defined = False
    first = back_up(scene)
    why = "web is transient: libvirt forgets its checkpoints when it ends"
    assert first.manifest.reason == f"no checkpoint was made: {why}"
    assert names(scene) == set()
    assert_whole(scene, job, image, why)


def test_a_clone_has_the_bitmaps_of_its_original(
    scene: Scene, job: FakeBackupJob, image: Path, tmp_path: Path
) -> None:
    back_up(scene)
    cloned = tmp_path / "cloned.qcow2"
    shutil.copy(image, cloned)
    clone = FakeGuest("web", OTHER, vda=cloned)  # also of the same name
    clone.checkpoints = scene.guest.checkpoints
    scene.host.known.append(clone)
    original, scene.guest = scene.guest, clone
    made = back_up_running(scene.config, scene.host, clone, scene.directory, BackupOptions(), CRASH)
    assert (made.manifest.level, made.manifest.parent) == ("full", "")
    assert original.uuid != made.manifest.uuid


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_checkpoint_of_another_directory(
    scene: Scene, job: FakeBackupJob, image: Path, is_copy: bool
) -> None:
    """Its name says so, whatever a manifest says."""
    made = back_up(scene)
    checkpoint = made.manifest.checkpoint
    if is_copy:
        (scene.directory.path / IDENTITY).write_text("0123456789abcdef\n")
    else:
        checkpoint = f"{checkpoint[:-8]}01234567"
        manifest = msgspec.structs.replace(made.manifest, checkpoint=checkpoint)
        json_file.write(made.directory / MANIFEST, manifest)
    assert_whole(
        scene, job, image, f"checkpoint {checkpoint} is not of {made.name} in this directory"
    )


def test_two_directories(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    path = scene.root / "second"
    path.mkdir()
    second = BackupDirectory(path)
    made = [back_up(scene), back_up(scene, second)]
    assert scene.directory.identity() != second.identity()
    for number in range(1, 4):
        for at, directory in enumerate((scene.directory, second)):
            write(image, 10 * number + at, 64 * number)
            made.append(back_up(scene, directory))
            assert job.modes() == {"vda": made[-3].manifest.checkpoint}
            assert scene.content(made[-1])[64 * number << 10] == 10 * number + at
    kept = (made[0], made[1], made[-2], made[-1])
    assert names(scene) == {each.manifest.checkpoint for each in kept}
    assert scene.nothing_left()


def test_a_directory_whose_identity_was_lost(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    old = back_up(scene).manifest.checkpoint
    (scene.directory.path / IDENTITY).write_bytes(b"")
    made = [back_up(scene, level=Level.FULL), back_up(scene)]
    assert names(scene) == {each.manifest.checkpoint for each in made} and old not in names(scene)


def test_checkpoints_of_others_stay(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    back_up(scene)
    known = scene.guest.checkpoints[0]
    for name in ("virtnbdbackup.0", "zvmsnap-0123456789abcdef-2026-11-20T030000Z-01234567"):
        scene.guest.checkpoints.append(type(known)(name, 0, {"vda": name}))
    back_up(scene)
    back_up(scene)
    assert {"virtnbdbackup.0", "zvmsnap-0123456789abcdef-2026-11-20T030000Z-01234567"} <= names(
        scene
    )
    assert len(scene.guest.checkpoints) == 4
