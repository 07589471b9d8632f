import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.backup_scene import skip_without_qemu_img
from tests.fakes.images import run_qemu_img, write
from zvmsnap.archive.images import Node, image_file
from zvmsnap.common.errors import DiskUnreadable, FilesImpossible
from zvmsnap.disks import qemu_img
from zvmsnap.files import images
from zvmsnap.point_disks.opened import PointDisks, SourceDisk
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot

MIB = 1 << 20


@pytest.fixture(autouse=True)
def needs_qemu_img() -> None:
    skip_without_qemu_img()


def tree(path: Path, image_format: str) -> Node:
    return image_file(str(path), image_format, str, str).node


def test_a_long_chain_is_opened_in_parts(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "0.raw").write_bytes(b"t" * MIB)
    below, below_format = "0.raw", "raw"
    for number in range(1, 25):
        named = ["-u", "-b", below, "-F", below_format]
        run_qemu_img("create", "-q", "-f", "qcow2", *named, snapshot / f"{number}.qcow2", "1M")
        below, below_format = f"{number}.qcow2", "qcow2"
    write(snapshot / "12.qcow2", 7)
    view = tmp_path / "view.qcow2"
    images.make_overlay(str(view), tree(snapshot / below, "qcow2"))
    assert len(list(tmp_path.glob("view.qcow2.*"))) > 1
    run_qemu_img("convert", "-O", "raw", view, tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == b"\7" * 65536 + b"t" * (MIB - 65536)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "/".join(["d" * 200] * 6) / "a.raw"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(MIB))
    with pytest.raises(DiskUnreadable, match="too long a path"):
        images.make_overlay(str(tmp_path / "v"), tree(path, "raw"))


class Disks(PointDisks):
    """The disks of a point; only the images that are there can be opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def disk(self, disk: Disk) -> SourceDisk:
        path = self._folder / disk.path
        if not path.exists():
            raise DiskUnreadable(f"{path}: no\x1b[2J")
        image = image_file(str(path), disk.format, str, str)
        return SourceDisk(image, Snapshot(disk.dataset, "x", 1, 1), str(path), is_plain=True)


def test_disks_that_cannot_be_opened_are_left_out(
    tmp_path: Path, manifest: Callable[..., Manifest]
) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(MIB))
    (tmp_path / "b.vmdk").touch()
    disks = (
        Disk("vda", "file", "raw", "/tank/web/a.raw", "tank/web", "a.raw"),
        Disk("vdb", "file", "vmdk", "/tank/web/b.vmdk", "tank/web", "b.vmdk"),
        Disk("vdc", "file", "qcow2", "/tank/web/gone", "tank/web", "gone"),
    )
    point = RestorePoint(tmp_path, manifest(disks=disks))
    work = str(tmp_path / "work")
    made, left_out = images.make(work, point, Disks(tmp_path))
    (image,) = made
    assert (image.target, Path(image.path).name) == ("vda", "vda.qcow2")
    assert image.disk_bytes == MIB
    assert [line.partition(":")[0] for line in left_out] == ["vdb is left out", "vdc is left out"]
    assert "\x1b" not in left_out[1]
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", made[0].path], check=True, capture_output=True
    ).stdout
    assert json.loads(told)["virtual-size"] == MIB
    assert os.stat(work).st_mode & 0o77 == 0
    point = RestorePoint(tmp_path, manifest(disks=disks[1:]))
    with pytest.raises(FilesImpossible, match="no disk can be opened: vdb"):
        images.make(work, point, Disks(tmp_path))
    assert qemu_img.header(made[0].path, "qcow2").backing_format == "raw"
