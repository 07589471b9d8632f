import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.images import write
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.disks import qemu_img as qemu_images
from zvmsnap.files import images
from zvmsnap.files.images import Places
from zvmsnap.files.record import View
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Partition

MIB = 1 << 20


def qemu_img(*words: object) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, words)], check=True, capture_output=True, text=True
    ).stdout


class Pool:
    """A filesystem tank/web with its snapshot x, and a golden image outside of it."""

    def __init__(self, root: Path) -> None:
        self.live = root / "web"
        self.snapshot = self.live / ".zfs" / "snapshot" / "x"
        self.snapshot.mkdir(parents=True)
        self.golden = root / "golden.raw"
        self.golden.write_bytes(b"g" * MIB)
        self.places = Places(
            {str(self.live): self.snapshot},
            {"tank/web": self.snapshot},
            {"tank/vol": "tank/clone"},
            made_here=True,
        )

    def image(self, name: str, backing: object = "", backing_format: str = "raw") -> Path:
        """A qcow2 image in the snapshot; its backing file is named as it would be, unopened."""
        below = ["-u", "-b", backing, "-F", backing_format] if backing else []
        qemu_img("create", "-q", "-f", "qcow2", *below, self.snapshot / name, "1M")
        return self.snapshot / name


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def tree(places: Places, name: str, image_format: str = "qcow2") -> dict[str, Any]:
    return places.tree(Disk("vda", "file", image_format, "/x", "tank/web", name))


def test_what_is_below_is_that_of_the_snapshot(pool: Pool, tmp_path: Path) -> None:
    """The header names the image of now: that of then is opened."""
    (pool.live / "base.raw").write_bytes(b"n" * MIB)
    (pool.snapshot / "base.raw").write_bytes(b"t" * MIB)
    pool.image("middle.qcow2", "base.raw")
    pool.image("top.qcow2", pool.live / "middle.qcow2", "qcow2")
    images.make_overlay(str(tmp_path / "view.qcow2"), tree(pool.places, "top.qcow2"))
    qemu_img("convert", "-O", "raw", tmp_path / "view.qcow2", tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == b"t" * MIB


def test_an_image_without_backing_has_none(pool: Pool) -> None:
    pool.image("a.qcow2")
    (pool.snapshot / "b.raw").write_bytes(b"QFI\xfb")
    assert tree(pool.places, "a.qcow2") == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(pool.snapshot / "a.qcow2")},
        "backing": None,
    }
    assert tree(pool.places, "b.raw", "raw") == {
        "driver": "raw",
        "file": {"driver": "file", "filename": str(pool.snapshot / "b.raw")},
    }


def test_a_data_file(pool: Pool) -> None:
    (pool.snapshot / "data").write_bytes(bytes(MIB))
    image = pool.snapshot / "a.qcow2"
    options = f"data_file={pool.snapshot / 'data'},data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "1M")
    qemu_img(
        "amend",
        "-q",
        "-o",
        "data_file=data",
        "--image-opts",
        f"driver=qcow2,file.filename={image},data-file.filename={pool.snapshot / 'data'}",
    )
    assert tree(pool.places, "a.qcow2")["data-file"]["filename"] == str(pool.snapshot / "data")


def test_volumes_are_clones_and_partitions_parts_of_them(pool: Pool) -> None:
    disk = Disk("vda", "block", "raw", "/dev/zvol/tank/vol", "tank/vol", "")
    device = {"driver": "host_device", "filename": "/dev/zvol/tank/clone"}
    assert pool.places.tree(disk) == {"driver": "raw", "file": device}
    part = Disk("vda", "block", "raw", "", "tank/vol", "", Partition(1, MIB, 2 * MIB))
    assert pool.places.tree(part) == {
        "driver": "raw",
        "offset": MIB,
        "size": 2 * MIB,
        "file": device,
    }
    pool.image("a.qcow2", "/dev/zvol/tank/vol")
    assert tree(pool.places, "a.qcow2")["backing"]["file"] == device


def test_a_golden_image_is_trusted_in_a_point_of_our_own(pool: Pool) -> None:
    pool.image("a.qcow2", pool.golden)
    assert tree(pool.places, "a.qcow2")["backing"]["file"]["filename"] == str(pool.golden)
    afar = Places(pool.places.folders, pool.places.datasets, {}, made_here=False)
    with pytest.raises(FilesImpossible, match="in no dataset of the point"):
        tree(afar, "a.qcow2")


@pytest.mark.parametrize(
    ("backing", "backing_format", "why"),
    [
        ("nbd://host/x", "raw", "which is no file"),
        ('json:{"driver":"file","filename":"/etc/shadow"}', "raw", "which is no file"),
        ("/etc/passwd", "vmdk", "format vmdk is not opened"),
    ],
)
def test_what_a_header_may_not_name(
    pool: Pool, backing: str, backing_format: str, why: str
) -> None:
    pool.image("a.qcow2", backing, backing_format)
    with pytest.raises(FilesImpossible, match=why):
        tree(pool.places, "a.qcow2")


def test_no_format_below_is_no_raw(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU would look into it: whatever the guest has written there would be opened."""
    header = qemu_images.Header(str(pool.golden), "", "")
    monkeypatch.setattr(qemu_images, "header", lambda *_: header)
    pool.image("a.qcow2")
    with pytest.raises(FilesImpossible, match="format unknown is not opened"):
        tree(pool.places, "a.qcow2")


def test_no_symlink_is_followed(pool: Pool) -> None:
    (pool.snapshot / "a.raw").symlink_to("/etc/shadow")
    with pytest.raises(FilesImpossible, match="is a symlink"):
        tree(pool.places, "a.raw", "raw")
    (pool.snapshot / "dir").symlink_to("/etc")
    pool.image("b.qcow2", "dir/shadow")
    with pytest.raises(FilesImpossible, match="is a symlink"):
        tree(pool.places, "b.qcow2")


def test_a_long_chain_is_opened_in_parts(pool: Pool, tmp_path: Path) -> None:
    (pool.snapshot / "0.raw").write_bytes(b"t" * MIB)
    below, below_format = "0.raw", "raw"
    for number in range(1, 25):
        pool.image(f"{number}.qcow2", below, below_format)
        below, below_format = f"{number}.qcow2", "qcow2"
    write(pool.snapshot / "12.qcow2", 7)
    view = tmp_path / "view.qcow2"
    images.make_overlay(str(view), tree(pool.places, below))
    assert len(list(tmp_path.glob("view.qcow2.*"))) > 1
    qemu_img("convert", "-O", "raw", view, tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == b"\7" * 65536 + b"t" * (MIB - 65536)


def test_a_path_that_is_too_long(pool: Pool, tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 6)
    (pool.snapshot / deep).mkdir(parents=True)
    (pool.snapshot / deep / "a.raw").write_bytes(bytes(MIB))
    with pytest.raises(FilesImpossible, match="too long a path"):
        images.make_overlay(str(tmp_path / "v"), tree(pool.places, f"{deep}/a.raw", "raw"))


def test_disks_that_cannot_be_opened_are_left_out(
    pool: Pool,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    view: View,
) -> None:
    table = [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/", str(pool.live), "tank/web")]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    (pool.snapshot / "a.raw").write_bytes(bytes(MIB))
    disks = (
        Disk("vda", "file", "raw", f"{pool.live}/a.raw", "tank/web", "a.raw"),
        Disk("vdb", "file", "vmdk", f"{pool.live}/b", "tank/web", "b"),
        Disk("vdc", "file", "qcow2", f"{pool.live}/gone", "tank/web", "gone"),
    )
    point = RestorePoint(tmp_path, manifest(disks=disks))
    made, left_out = images.make(view, point)
    assert [(image.target, Path(image.path).name) for image in made] == [("vda", "vda.qcow2")]
    assert [line.partition(":")[0] for line in left_out] == ["vdb is left out", "vdc is left out"]
    info = json.loads(qemu_img("info", "--output=json", made[0].path))
    assert info["virtual-size"] == MIB and os.stat(Path(made[0].path).parent).st_mode & 0o77 == 0
    point = RestorePoint(tmp_path, manifest(disks=disks[1:]))
    with pytest.raises(FilesImpossible, match="no disk can be opened: vdb"):
        images.make(view, point)
