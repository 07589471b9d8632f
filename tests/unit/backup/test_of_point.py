"""A backup of a point, and the next one that is on it: images that qemu-img reads by itself."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.fakes.backup_scene import DISK_BYTES, Scene, manifests_read
from tests.fakes.images import run_qemu_img
from zvmsnap.archive.directory import BackupDirectory
from zvmsnap.archive.manifest import Level
from zvmsnap.common.errors import BackupFailed, BackupImpossible, DiskUnreadable, QemuImgFailed
from zvmsnap.disks import qemu_img
from zvmsnap.virt import save_image


def test_full_and_increments(scene: Scene) -> None:
    scene.write(1 << 20, os.urandom(300_000))
    points = [scene.point("one", memory=True)]
    scene.write(2 << 20, b"two" * 100)
    scene.write(1 << 20, bytes(100_000))
    points.append(scene.point("two"))
    scene.write(DISK_BYTES - 5, b"three")
    points.append(scene.point("three"))

    made = [scene.back_up(point) for point in points]
    assert [each.manifest.level for each in made] == ["full", "inc", "inc"]
    assert [each.name for each in made] == [f"web@2026-11-20T03000{n}Z" for n in (1, 2, 3)]
    for point, backup in zip(points, made, strict=True):
        assert scene.content(backup) == scene.snapshot_of(point)
    sizes = [(each.directory / "vda.qcow2").stat().st_size for each in made]
    assert sizes[1] < sizes[0] and sizes[2] < sizes[0]
    header = qemu_img.header(str(made[2].directory / "vda.qcow2"), "qcow2")
    told = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", made[2].directory / "vda.qcow2"],
            check=True,
            capture_output=True,
        ).stdout
    )
    assert told["backing-filename"] == f"../{made[1].name}/vda.qcow2"
    assert header.backing_format == "qcow2"
    assert scene.nothing_left()


def test_all_that_belongs_to_it_is_for_root_alone(scene: Scene) -> None:
    backup = scene.back_up(scene.point("one", memory=True))
    names = {"manifest.json", "vda.qcow2", "domain.xml", "persistent.xml", "nvram.fd", "memory.img"}
    assert {path.name for path in backup.directory.iterdir()} == names
    assert stat.S_IMODE(backup.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in backup.directory.iterdir()} == {0o600}
    # libvirt's plain image, though the point has a page image.
    assert save_image.read_header(backup.directory / "memory.img").format == "raw"
    assert (backup.directory / "nvram.fd").read_bytes() == b"variables"


def test_it_can_be_moved_as_a_whole(scene: Scene, tmp_path: Path) -> None:
    first, second = scene.point("one"), None
    scene.back_up(first)
    scene.write(0, b"x")
    second = scene.point("two")
    backup = scene.back_up(second)
    moved = tmp_path / "elsewhere"
    os.rename(scene.directory.path, moved)
    out = tmp_path / "out.raw"
    run_qemu_img("convert", "-O", "raw", moved / backup.name / "vda.qcow2", out)
    assert out.read_bytes() == scene.snapshot_of(second)


@pytest.mark.parametrize("level", [Level.FULL, Level.COPY, Level.DIFF])
def test_levels(scene: Scene, level: Level) -> None:
    made = []
    wanted_levels: list[Level | None] = [None, None, level, None]
    for number, wanted in enumerate(wanted_levels):
        scene.write(number << 20, bytes([number + 1]) * 70_000)
        point = scene.point(f"p{number}")
        made.append(scene.back_up(point, level=wanted))
        assert scene.content(made[-1]) == scene.snapshot_of(point)
    # Which of those before each of the last two is on; None for a whole one.
    on: dict[Level, tuple[int | None, int]] = {
        Level.FULL: (None, 2),
        Level.COPY: (None, 1),
        Level.DIFF: (0, 2),
    }
    names = ["" if number is None else made[number].name for number in on[level]]
    assert [each.manifest.parent for each in made[2:]] == names


def test_compressed(scene: Scene) -> None:
    scene.write(0, b"abc" * 500_000)
    plain = scene.back_up(scene.point("one"), level=Level.COPY)
    first = scene.point("two")
    full = scene.back_up(first, compress=True)
    scene.write(2 << 20, b"def" * 300_000)
    second = scene.point("three")
    inc = scene.back_up(second, compress=True)
    assert full.manifest.stored_bytes < plain.manifest.stored_bytes / 2
    assert inc.manifest.level is Level.INC
    assert (scene.content(full), scene.content(inc)) == (
        scene.snapshot_of(first),
        scene.snapshot_of(second),
    )


def test_a_disk_that_is_new_or_left_out(scene: Scene) -> None:
    scene.back_up(scene.point("one"))
    (scene.mountpoint / "b.raw").write_bytes(b"new" * 1000 + bytes(1096))
    both = (("vda", "raw", "vda.raw"), ("vdb", "raw", "b.raw"))
    point = scene.point("two", disks=both)
    backup = scene.back_up(point)
    vda, vdb = backup.manifest.disks
    assert (vda.depends, vdb.depends) == (True, False)
    assert vdb.compared == f"vdb is not in {backup.manifest.parent}"
    assert scene.content(backup, "vdb") == scene.snapshot_of(point, "b.raw")
    alone = scene.back_up(scene.point("three", disks=both), exclude=frozenset({"vda"}))
    assert ([disk.target for disk in alone.manifest.disks], alone.manifest.left_out) == (
        ["vdb"],
        ("vda",),
    )
    # What was left out comes whole the next time.
    whole = scene.back_up(scene.point("four", disks=both))
    assert [disk.depends for disk in whole.manifest.disks] == [False, True]
    with pytest.raises(BackupImpossible, match="has no disk vdx; it has vda, vdb"):
        scene.back_up(point, exclude=frozenset({"vdx"}))


def test_a_disk_that_has_grown(scene: Scene) -> None:
    scene.write(0, b"x" * 1000)
    scene.back_up(scene.point("one"))
    os.truncate(scene.disk, DISK_BYTES + (1 << 20))
    scene.write(DISK_BYTES + 10, b"y")
    point = scene.point("two")
    backup = scene.back_up(point)
    assert backup.manifest.disks[0].depends
    assert scene.content(backup) == scene.snapshot_of(point)
    os.truncate(scene.disk, DISK_BYTES - (1 << 20))
    point = scene.point("three")
    assert scene.content(scene.back_up(point)) == scene.snapshot_of(point)


def test_the_last_backup_is_broken(scene: Scene) -> None:
    first = scene.back_up(scene.point("one"))
    scene.back_up(scene.point("two"))
    (first.directory / "vda.qcow2").unlink()
    backup = scene.back_up(scene.point("three"))
    assert backup.manifest.level is Level.FULL
    assert "the last backup cannot be used: " in backup.manifest.reason
    assert f"{first.directory}/vda.qcow2 is not there" in backup.manifest.reason


def test_the_last_backup_is_removed_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another host, whose locks are not ours: an increment on it would be worth nothing."""
    first = scene.back_up(scene.point("one"))
    do = qemu_img.make_difference

    def meanwhile(*words: str) -> None:
        do(*words)
        BackupDirectory(scene.directory.path).remove(first)

    scene.write(0, b"two")
    point = scene.point("two")
    with monkeypatch.context() as patch:
        patch.setattr(qemu_img, "make_difference", meanwhile)
        with pytest.raises(BackupFailed, match=f"web: {first.name}, on which .*removed meanwhile"):
            scene.back_up(point)
    assert scene.directory.read() == ([], []) and scene.nothing_left()
    assert scene.back_up(point).manifest.level == "full"


def test_manifests_are_read_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all that one backup asks of its directory."""
    made = [scene.back_up(scene.point(name)) for name in ("one", "two")]
    read = manifests_read(monkeypatch)
    scene.directory = BackupDirectory(scene.directory.path)
    made.append(scene.back_up(scene.point("three")))
    assert sorted(read) == [each.name for each in made]


def test_no_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "needed_bytes", lambda _image: 1 << 60)
    with pytest.raises(BackupImpossible, match="MiB free, and the backup may need"):
        scene.back_up(scene.point("one"))
    assert scene.nothing_left() and scene.directory.read() == ([], [])


def test_a_failure_leaves_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise QemuImgFailed("qemu-img convert: no")

    monkeypatch.setattr(qemu_img, "convert", fail)
    with pytest.raises(QemuImgFailed):
        scene.back_up(scene.point("one"))
    assert scene.nothing_left() and scene.directory.read() == ([], [])


# -- images whose headers name others


def test_a_chain_of_the_dataset_is_read_as_of_the_snapshot(scene: Scene) -> None:
    base, top = scene.mountpoint / "base.raw", scene.mountpoint / "top.qcow2"
    base.write_bytes(b"old" * 1000 + bytes(1096))
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top)
    point = scene.point("one", disks=[("vda", "qcow2", "top.qcow2")])
    base.write_bytes(b"new" * 1000 + bytes(1096))
    assert scene.content(scene.back_up(point))[:3000] == b"old" * 1000


def test_a_data_file_is_read_as_of_the_snapshot(scene: Scene) -> None:
    data, top = scene.mountpoint / "d.raw", scene.mountpoint / "top.qcow2"
    option = f"data_file={data},data_file_raw=on"
    run_qemu_img("convert", "-O", "qcow2", "-o", option, scene.disk, top)
    with data.open("r+b") as file:
        file.write(b"old")
    point = scene.point("one", disks=[("vda", "qcow2", "top.qcow2")])
    with data.open("r+b") as file:
        file.write(b"new")
    assert scene.content(scene.back_up(point))[:3] == b"old"


def test_a_file_of_the_host_is_not_read(scene: Scene, tmp_path: Path) -> None:
    """The guest's owner may have named any in a header, or put a symlink there."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" + bytes(4090))
    top = scene.mountpoint / "top.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, top)
    point = scene.point("one", disks=[("vda", "qcow2", "top.qcow2")])
    with pytest.raises(DiskUnreadable, match="the guest's definition does not"):
        scene.back_up(point)
    scene.disk.unlink()
    scene.disk.symlink_to(secret)
    with pytest.raises(DiskUnreadable, match="is a symlink that leads out of its snapshot"):
        scene.back_up(scene.point("two"))
    assert scene.nothing_left()


def test_names_with_blanks_and_quotes(scene: Scene) -> None:
    name = scene.guest.name = 'we\'b "1, 2": x'
    for number in range(2):
        scene.write(0, b"%d" % number)
        point = scene.point(f"p{number}", domain=name)
        backup = scene.back_up(point)
        assert backup.name.startswith(f"{name}@") and backup.directory.is_dir()
        assert scene.content(backup) == scene.snapshot_of(point)
    assert backup.manifest.level is Level.INC
