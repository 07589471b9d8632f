"""A guest that runs is backed up by libvirt's job; what it leaves behind is nothing."""

import dataclasses
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.backup_job import FakeBackupJob
from tests.fakes.backup_scene import Scene
from tests.fakes.images import run_qemu_img, write
from zvmsnap.archive.directory import BackupDirectory, StoredBackup, described
from zvmsnap.archive.manifest import Level
from zvmsnap.archive.verify import problems
from zvmsnap.backup import checkpoints, leftovers
from zvmsnap.backup.of_guest import Wanted, back_up_guest
from zvmsnap.backup.push import back_up_running
from zvmsnap.backup.work import BackupWork, Works
from zvmsnap.backup.writing import BackupOptions, discard_made
from zvmsnap.common.errors import (
    BackupFailed,
    BackupImpossible,
    BackupRefused,
    ConnectionLost,
    LockTimeout,
)
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process
from zvmsnap.config.mode import parse_mode
from zvmsnap.disks import qemu_img
from zvmsnap.virt.domain_xml import Metadata

ID = "0" * 32
NAME = "zvmsnap-0123456789abcdef-2026-11-20T030000Z-00000000"


def back_up(scene: Scene, wanted: Wanted = Wanted.BEST, level: Level | None = None) -> StoredBackup:
    options = BackupOptions(level)
    made = back_up_guest(scene.config, scene.host, scene.guest, scene.directory, options, wanted)
    assert made
    return made


def names(scene: Scene) -> list[str]:
    return [each.name for each in scene.guest.checkpoints]


def test_full_and_increment(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    first = back_up(scene)
    assert (first.manifest.way, first.manifest.consistency) == ("push", "crash")
    assert names(scene) == [first.manifest.checkpoint]
    identity = scene.directory.identity()
    assert first.manifest.checkpoint == (
        f"zvmsnap-{identity}-{first.name.partition('@')[2]}-{first.manifest.id[:8]}"
    )
    write(image, 8, 512)
    second = back_up(scene)
    assert second.manifest.level == "inc"
    for backup, at, byte in ((first, 128, 7), (second, 128, 7), (second, 512, 8)):
        content = scene.content(backup)
        assert content[at << 10 : (at + 64) << 10] == bytes([byte]) * 65536
    assert {path.name for path in second.directory.iterdir()} == {
        *("manifest.json", "vda.qcow2", "domain.xml", "persistent.xml")
    }
    assert stat.S_IMODE(second.directory.stat().st_mode) == 0o700
    assert job.calls == [] and scene.nothing_left()
    # Only what has changed since the first one was pushed; that of a full one stays, for `diff`.
    assert job.modes() == {"vda": first.manifest.checkpoint}
    (disk,) = second.manifest.disks
    assert disk.compared.endswith(f" KiB, as libvirt says, since checkpoint {names(scene)[0]}")
    assert names(scene) == [first.manifest.checkpoint, second.manifest.checkpoint]


def test_a_chain_and_a_difference(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    """Each is exact; libvirt keeps the checkpoints of the last one and of the last full one."""
    made = [back_up(scene)]
    for number in range(1, 4):
        write(image, number, 64 * number)
        run_qemu_img("resize", "-q", image, "1M")  # no change
        made.append(back_up(scene))
        assert scene.content(made[-1])[64 * number << 10] == number
    assert job.modes() == {"vda": made[2].manifest.checkpoint}
    assert names(scene) == [made[0].manifest.checkpoint, made[3].manifest.checkpoint]
    diff = back_up(scene, level=Level.DIFF)
    assert diff.manifest.parent == made[0].name
    assert job.modes() == {"vda": made[0].manifest.checkpoint}
    assert [scene.content(diff)[64 * number << 10] for number in range(1, 4)] == [1, 2, 3]
    full = back_up(scene, level=Level.FULL)
    assert job.modes() == {"vda": ""} and names(scene) == [full.manifest.checkpoint]
    copy = back_up(scene, level=Level.COPY)
    assert copy.manifest.checkpoint == "" and names(scene) == [full.manifest.checkpoint]


def test_compressed(scene: Scene, job: FakeBackupJob, image: Path) -> None:
    back_up(scene)
    write(image, 9, 192)
    options = BackupOptions(compress=True)
    made = back_up_guest(
        scene.config, scene.host, scene.guest, scene.directory, options, Wanted.BEST
    )
    assert made and scene.content(made)[192 << 10] == 9 and scene.content(made)[128 << 10] == 7


def test_room_is_judged_first(
    scene: Scene, job: FakeBackupJob, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is pushed whole; of an increment nobody knows how large it is."""
    back_up(scene)
    usage = shutil.disk_usage(scene.root)
    for at in range(256, 576, 64):
        write(image, 3, at)
    free_bytes = (16 << 20) + (320 << 10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free_bytes))
        with pytest.raises(BackupImpossible, match="has 16 MiB free, and the backup may need"):
            back_up(scene, level=Level.FULL)
        assert len(job.begun) == 1
        back_up(scene)
    assert scene.nothing_left()


def test_room_for_what_is_pushed(
    scene: Scene, job: FakeBackupJob, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known before libvirt writes anything. A full one is not there twice."""
    needed_bytes = qemu_img.needed_bytes(str(image))
    usage = shutil.disk_usage(scene.root)
    free_bytes = (16 << 20) + needed_bytes
    patched = usage._replace(free=free_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: patched)
    with pytest.raises(BackupImpossible, match="MiB free, and the backup may need"):
        back_up(scene)
    assert job.begun == [] and scene.nothing_left()
    patched = usage._replace(free=free_bytes)
    assert back_up(scene).manifest.level == "full"


@pytest.mark.parametrize("level", [Level.FULL, Level.COPY])
def test_what_is_pushed_whole_is_the_image(
    scene: Scene, job: FakeBackupJob, image: Path, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is read and written once more."""
    pushed: list[int] = []

    def after() -> None:
        (path,) = scene.directory.path.glob(".making-*/vda.pushed.qcow2")
        pushed.append(path.stat().st_ino)

    job.after = after
    monkeypatch.setattr(qemu_img, "convert", None)
    made = back_up(scene, level=level)
    stored = made.directory / "vda.qcow2"
    assert [stored.stat().st_ino] == pushed and stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert qemu_img.header(str(stored), "qcow2").backing == ""
    assert scene.content(made)[128 << 10 : 192 << 10] == bytes([7]) * 65536
    assert problems(scene.directory, made) == [] and scene.nothing_left()


def test_zeros_that_were_pushed_are_not_kept(
    scene: Scene, job: FakeBackupJob, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU does not know them for holes in a logical volume, nor in an image that is preallocated.

    Unless there is no room for both.
    """
    job.is_thick = True
    made = back_up(scene, level=Level.COPY)
    small_bytes = (made.directory / "vda.qcow2").stat().st_size
    assert small_bytes < 600 << 10
    room_bytes = qemu_img.needed_bytes(str(image)) + (16 << 20)
    usage = shutil.disk_usage(scene.root)._replace(free=room_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    large = back_up(scene, level=Level.COPY)
    assert (large.directory / "vda.qcow2").stat().st_size > 1 << 20
    assert scene.content(made) == scene.content(large)
    assert scene.nothing_left()


def test_the_guest_is_free_as_soon_as_its_job_has_ended(
    scene: Scene, job: FakeBackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not held while what was pushed is copied, and read once more for its checksums."""
    job.is_thick = True
    held: dict[str, bool] = {}

    def noting(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*words: Any, **options: Any) -> Any:
            held[name] = is_held(scene.config.locks_dir, scene.guest.uuid)
            return do(*words, **options)

        return noted

    monkeypatch.setattr(scene.host, "begin_backup", noting("begin", job.begin))
    monkeypatch.setattr(qemu_img, "convert", noting("copy", qemu_img.convert))
    monkeypatch.setattr("zvmsnap.backup.writing.described", noting("checksum", described))
    forget_old = checkpoints.forget_old
    monkeypatch.setattr(checkpoints, "forget_old", noting("forget", forget_old))
    back_up(scene)
    assert held == {"begin": True, "copy": False, "checksum": False, "forget": True}


def test_it_is_there_though_old_checkpoints_cannot_go(
    scene: Scene, job: FakeBackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook has the guest by then, and keeps it."""
    first = back_up(scene, level=Level.FULL)
    limits = msgspec.structs.replace(scene.config.limits, lock_timeout_s=0.1)
    scene.config = msgspec.structs.replace(scene.config, limits=limits)
    with ExitStack() as hook:
        publish = BackupDirectory.publish

        def published(directory: BackupDirectory, *words: Any) -> StoredBackup:
            hook.enter_context(lock(scene.config.locks_dir, scene.guest.uuid, "capture web", 0))
            return publish(directory, *words)

        with monkeypatch.context() as patch:
            patch.setattr(BackupDirectory, "publish", published)
            second = back_up(scene, level=Level.FULL)
    assert names(scene) == [first.manifest.checkpoint, second.manifest.checkpoint]
    assert scene.nothing_left()
    third = back_up(scene, level=Level.FULL)
    assert names(scene) == [third.manifest.checkpoint]


def test_a_job_that_fails(scene: Scene, job: FakeBackupJob) -> None:
    job.why = "No space left on device"
    with pytest.raises(BackupFailed, match="did not end well: No space left on device"):
        back_up(scene)
    assert scene.nothing_left() and scene.directory.read() == ([], [])
    assert names(scene) == []


def test_a_guest_that_is_shut_off_meanwhile(scene: Scene, job: FakeBackupJob) -> None:
    job.after = scene.guest.shut_off
    with pytest.raises(BackupFailed, match="was shut off, or has crashed"):
        back_up(scene)
    assert scene.nothing_left()
    # Its bitmaps go with the next backup, by a QEMU.
    (orphan,) = names(scene)
    scene.guest.start()
    job.after = lambda: None
    made = back_up(scene)
    assert names(scene) == [made.manifest.checkpoint] != [orphan]
    assert f"delete checkpoint {orphan}" in scene.guest.calls


def test_a_guest_that_is_gone_meanwhile(scene: Scene, job: FakeBackupJob) -> None:
    """Migrated, or undefined."""

    def go() -> None:
        scene.guest.exists = False

    job.after = go
    with pytest.raises(BackupFailed, match="was shut off, or has crashed"):
        back_up(scene)
    assert scene.nothing_left()


def test_libvirt_is_ended_meanwhile(
    scene: Scene, job: FakeBackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is back, it has no job and no checkpoint of the backup."""
    lost = iter([True, True])
    job.ends = False
    about = job.about

    def lose(uuid: str) -> str:
        if next(lost, False):
            raise ConnectionLost("asking for a backup: the connection to libvirt was lost")
        return about(uuid)

    monkeypatch.setattr(scene.host, "backup_xml", lose)
    with pytest.raises(BackupFailed, match="web: libvirt was ended while it was backed up"):
        back_up(scene)
    assert job.calls == ["abort"] and names(scene) == [] and scene.nothing_left()


def test_libvirt_stays_away(
    scene: Scene, job: FakeBackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may have stays noted; the next backup, or recover, ends that."""
    job.ends = False

    def lose(_uuid: str) -> str:
        raise ConnectionLost("asking for a backup: the connection to libvirt was lost")

    with monkeypatch.context() as patch:
        patch.setattr(scene.host, "backup_xml", lose)
        with pytest.raises(BackupFailed, match="libvirt was ended"):
            back_up(scene)
    (work,), _ = Works(scene.config).all()
    assert isinstance(work, BackupWork) and work.pushes
    assert [work.checkpoint] == names(scene)
    Works(scene.config).write(msgspec.structs.replace(work, owner=Process.none()))
    job.ends = True
    made = back_up(scene)
    assert job.calls == ["abort"] and names(scene) == [made.manifest.checkpoint]
    assert scene.nothing_left()


def test_what_it_cannot_be(scene: Scene, job: FakeBackupJob) -> None:
    with pytest.raises(BackupImpossible, match="web: it has no channel for an agent"):
        back_up(scene, Wanted.QUIESCED)
    assert job.begun == [] and scene.nothing_left()


def interrupted(scene: Scene, **changes: object) -> BackupWork:
    making = scene.directory.make(ID)
    work = BackupWork(
        id=ID,
        domain="web",
        uuid=scene.guest.uuid,
        owner=Process.none(),
        making=str(making),
        pushes=True,
    )
    work = msgspec.structs.replace(work, **changes)
    Works(scene.config).write(work)
    return work


def test_recover_ends_the_job(scene: Scene, job: FakeBackupJob) -> None:
    work = interrupted(scene)
    job.xml, job.ends = "<target file='/somewhere/else'/>", False
    elsewhere = msgspec.structs.replace(work, id="1" * 32, making=f"{work.making}x")
    Works(scene.config).write(elsewhere)
    for each in leftovers.works(scene.config, scene.host)[0][1:]:
        each.end()
    assert job.calls == []  # that job is somebody else's
    job.xml = f"<target file='{work.making}/vda.pushed.qcow2'/>"
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert job.calls == ["abort"] and scene.nothing_left()


def test_recover_takes_turns_with_the_hooks_of_the_guest(
    scene: Scene, job: FakeBackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need not wait while images are removed; nor is a thing ended twice."""
    limits = msgspec.structs.replace(scene.config.limits, lock_timeout_s=0.1)
    scene.config = msgspec.structs.replace(scene.config, limits=limits)
    work = interrupted(scene)
    job.xml, job.ends = f"<target file='{work.making}/vda.pushed.qcow2'/>", False
    held: list[bool] = []

    def discard(done: BackupWork) -> None:
        held.append(is_held(scene.config.locks_dir, scene.guest.uuid))
        discard_made(done)

    monkeypatch.setattr(leftovers, "discard_made", discard)
    (each,) = leftovers.works(scene.config, scene.host)[0]
    with (
        lock(scene.config.locks_dir, scene.guest.uuid, "capture web", 0),
        pytest.raises(LockTimeout, match="to recover web; it is held to capture web"),
    ):
        each.end()
    assert job.calls == [] and Path(work.making).is_dir()
    each.end()
    assert job.calls == ["abort"] and held == [False] and scene.nothing_left()
    each.end()
    assert held == [False] and scene.nothing_left()


def test_recover_forgets_the_checkpoint_of_no_backup(scene: Scene, job: FakeBackupJob) -> None:
    made = back_up(scene)
    known = made.manifest.checkpoint
    interrupted(scene, checkpoint=NAME)
    scene.guest.checkpoints.append(other(scene, NAME))
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert names(scene) == [known] and scene.nothing_left()
    # Killed after it was published: the checkpoint is that of a backup.
    interrupted(scene, id=made.manifest.id, checkpoint=known)
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert names(scene) == [known] and scene.nothing_left()


def other(scene: Scene, name: str) -> Metadata:
    return dataclasses.replace(scene.guest.checkpoints[0], name=name, bitmaps={"vda": name})


def test_a_bitmap_that_is_missing_is_no_hindrance(scene: Scene, job: FakeBackupJob) -> None:
    interrupted(scene, checkpoint=NAME)
    back_up(scene)
    scene.guest.checkpoints.append(other(scene, NAME))
    scene.guest.without_bitmap.add(NAME)
    interrupted(scene, checkpoint=NAME)
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert f"forget checkpoint {NAME}" in scene.guest.calls and NAME not in names(scene)


def test_a_bitmap_that_cannot_be_removed_now_hinders_no_backup(
    scene: Scene, job: FakeBackupJob
) -> None:
    """Nor does `recover` fail for it: libvirt knows the checkpoint, and the next backup does it."""
    made = back_up(scene)
    scene.guest.checkpoints.append(other(scene, f"{made.manifest.checkpoint[:-8]}{ID[:8]}"))
    orphan = names(scene)[-1]
    scene.guest.without_bitmap.add(orphan)
    assert scene.guest.qemu
    scene.guest.qemu.nodes.add_bitmap("libvirt-1-format", orphan, busy=True)
    interrupted(scene, checkpoint=orphan)
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert orphan in names(scene) and scene.nothing_left()
    interrupted(scene, checkpoint=orphan)
    scene.guest.at["ask_qemu"] = scene.guest.without_bitmap.clear
    after = back_up(scene)
    assert names(scene) == [made.manifest.checkpoint, after.manifest.checkpoint]
    assert scene.nothing_left()


def test_libvirt_refuses_all(scene: Scene, job: FakeBackupJob) -> None:
    job.refuses = lambda _xml, _checkpoint: "Permission denied"
    with pytest.raises(BackupRefused, match="Permission denied"):
        back_up_running(
            *(scene.config, scene.host, scene.guest, scene.directory, BackupOptions()),
            parse_mode("crash"),
        )
    # With a checkpoint, and without.
    assert [checkpoint is None for _, checkpoint in job.begun] == [False, True]
    assert scene.nothing_left() and names(scene) == []
