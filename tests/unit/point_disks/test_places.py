"""What the header of an image may name, and what is read for it; headers by the real qemu-img."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.backup_scene import skip_without_qemu_img
from tests.fakes.guest import UUID
from tests.fakes.images import run_qemu_img
from zvmsnap.archive import images
from zvmsnap.common.errors import DiskUnreadable
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import qemu_img
from zvmsnap.point_disks.places import Places, Seen
from zvmsnap.points import definition
from zvmsnap.points.manifest import DOMAIN_XML, Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Snapshot

MIB = 1 << 20


class Pool:
    """A filesystem tank/web with its snapshot x, a volume with a clone, and a golden image."""

    def __init__(self, root: Path, config: Config, manifest: Callable[..., Manifest]) -> None:
        self.root = root
        self.config = config
        self.live = root / "web"
        self.snapshot = self.live / ".zfs" / "snapshot" / "x"
        self.snapshot.mkdir(parents=True)
        self.golden = root / "golden.raw"
        self.golden.write_bytes(b"g" * MIB)
        self.unseen: dict[str, str] = {}
        self.named: list[Path] = []  # by the definition
        self._manifest = manifest

    def image(self, name: str, backing: object = "", backing_format: str = "raw") -> Path:
        """A qcow2 image in the snapshot; its backing file is named as it would be, unopened."""
        below = ["-u", "-b", str(backing), "-F", backing_format] if backing else []
        run_qemu_img("create", "-q", "-f", "qcow2", *below, self.snapshot / name, "1M")
        return self.snapshot / name

    def point(self, level: ConsistencyLevel = ConsistencyLevel.CRASH) -> RestorePoint:
        """A point that this host has made."""
        directory = self.root / "point"
        directory.mkdir(exist_ok=True)
        chain = "".join(f"<backingStore type='file'><source file='{path}'/>" for path in self.named)
        ends = "</backingStore>" * len(self.named)
        (directory / DOMAIN_XML).write_text(
            f"<domain><name>web</name><uuid>{UUID}</uuid><devices><disk type='file' device='disk'>"
            f"<source file='{self.live}/top.qcow2'/>{chain}{ends}<target dev='vda'/></disk>"
            "</devices></domain>"
        )
        disk = Disk("vda", "file", "qcow2", f"{self.live}/top.qcow2", "tank/web", "top.qcow2")
        built = self._manifest(disks=(disk,), level=level, memory=None)
        seal = definition.seal_of(self.config, directory, built)
        return RestorePoint(directory, msgspec.structs.replace(built, seal=seal))

    def places(self, point: RestorePoint | None = None) -> Places:
        snapshots = {name: Snapshot(name, "x", 1, 1) for name in ("tank/web", "tank/vol")}
        seen = Seen(snapshots, {"tank/web": self.snapshot}, {"tank/vol": "tank/own"}, self.unseen)
        table = [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/", str(self.live), "tank/web")]
        return Places(self.config, point or self.point(), seen, table)

    def tree(
        self, name: str, image_format: str = "qcow2", point: RestorePoint | None = None
    ) -> dict[str, Any]:
        """What QEMU opens for an image of the snapshot."""
        places = self.places(point)
        path = places.file("tank/web", name)
        return images.image_file(path, image_format, places.backing, places.data_file).node


@pytest.fixture
def pool(tmp_path: Path, config: Config, manifest: Callable[..., Manifest]) -> Pool:
    skip_without_qemu_img()
    return Pool(tmp_path, config, manifest)


def below(tree: dict[str, Any]) -> Any:
    """The file of the image below it."""
    return tree["backing"]["file"]


def test_what_is_below_is_that_of_the_snapshot(pool: Pool, tmp_path: Path) -> None:
    """The header names the image of now: that of the snapshot is opened."""
    (pool.live / "base.raw").write_bytes(b"n" * MIB)
    (pool.snapshot / "base.raw").write_bytes(b"t" * MIB)
    pool.image("middle.qcow2", "base.raw")
    pool.image("top.qcow2", pool.live / "middle.qcow2", "qcow2")
    image = images.Image(pool.tree("top.qcow2"))
    run_qemu_img("convert", "-O", "raw", image.name, tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == b"t" * MIB


def test_an_image_without_backing_has_none(pool: Pool) -> None:
    pool.image("a.qcow2")
    (pool.snapshot / "b.raw").write_bytes(b"QFI\xfb")
    assert pool.tree("a.qcow2") == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(pool.snapshot / "a.qcow2")},
        "backing": None,
    }
    # Whatever its guest has written there: it is raw.
    assert pool.tree("b.raw", "raw") == {
        "driver": "raw",
        "file": {"driver": "file", "filename": str(pool.snapshot / "b.raw")},
    }


def with_data_file(pool: Pool, named: str) -> None:
    """The image a.qcow2, whose header names that data file."""
    data = pool.root / "data"
    data.write_bytes(bytes(MIB))
    image = pool.snapshot / "a.qcow2"
    options = f"data_file={data},data_file_raw=on"
    run_qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "1M")
    opened = f"driver=qcow2,file.filename={image},data-file.filename={data}"
    run_qemu_img("amend", "-q", "-o", f"data_file={named}", "--image-opts", opened)


def test_a_data_file(pool: Pool) -> None:
    (pool.snapshot / "data").write_bytes(bytes(MIB))
    for named in ("data", str(pool.live / "data")):
        with_data_file(pool, named)
        assert pool.tree("a.qcow2")["data-file"]["filename"] == str(pool.snapshot / "data")


@pytest.mark.parametrize("named", ["/etc/shadow", "../../../../data"])
def test_a_data_file_elsewhere_is_written_to(pool: Pool, named: str) -> None:
    pool.named = [pool.root / "data", Path("/etc/shadow")]
    with_data_file(pool, named)
    with pytest.raises(DiskUnreadable, match="has the data of an image, and is in no dataset"):
        pool.tree("a.qcow2")


def test_a_volume_of_the_point_is_its_clone(pool: Pool) -> None:
    pool.image("a.qcow2", "/dev/zvol/tank/vol")
    device = {"driver": "host_device", "filename": "/dev/zvol/tank/own"}
    assert below(pool.tree("a.qcow2")) == device


def test_a_golden_image_that_the_definition_names(pool: Pool) -> None:
    link = pool.root / "link.raw"
    link.symlink_to("golden.raw")
    for path in (pool.golden, link):
        pool.image("a.qcow2", path)
        pool.named = []
        with pytest.raises(DiskUnreadable, match="the guest's definition does not"):
            pool.tree("a.qcow2")
        pool.named = [pool.golden]
        assert below(pool.tree("a.qcow2"))["filename"] == str(pool.golden)


def test_the_definition_of_a_guest_that_was_off_names_none(pool: Pool) -> None:
    pool.image("a.qcow2", pool.golden)
    off = pool.point(ConsistencyLevel.OFFLINE)
    assert below(pool.tree("a.qcow2", point=off))["filename"] == str(pool.golden)
    os.mkfifo(pool.root / "fifo")
    for path in (pool.root / "fifo", pool.root, pool.root / "gone"):
        pool.image("a.qcow2", path)
        with pytest.raises(DiskUnreadable, match="is no file, and no device"):
            pool.tree("a.qcow2", point=off)


def test_a_point_from_elsewhere_has_no_golden_image(pool: Pool) -> None:
    pool.image("a.qcow2", pool.golden)
    pool.named = [pool.golden]
    for level in (ConsistencyLevel.CRASH, ConsistencyLevel.OFFLINE):
        ours = pool.point(level)
        afar = msgspec.structs.replace(ours.manifest, seal="")
        with pytest.raises(DiskUnreadable, match="this host has not made the point"):
            pool.tree("a.qcow2", point=RestorePoint(ours.directory, afar))


def test_a_golden_image_beside_the_dataset(pool: Pool) -> None:
    """A relative name begins where the image was, not in the directory of its snapshot."""
    pool.image("a.qcow2", "../golden.raw")
    pool.named = [pool.golden]
    assert below(pool.tree("a.qcow2"))["filename"] == str(pool.golden)
    pool.named = []
    with pytest.raises(DiskUnreadable, match="the guest's definition does not"):
        pool.tree("a.qcow2")


def test_a_definition_that_is_gone(pool: Pool) -> None:
    pool.image("a.qcow2", pool.golden)
    point = pool.point()
    (point.directory / DOMAIN_XML).unlink()
    sealed = msgspec.structs.replace(
        point.manifest, seal=definition.seal_of(pool.config, point.directory, point.manifest)
    )
    with pytest.raises(DiskUnreadable, match="its definition is gone"):
        pool.tree("a.qcow2", point=RestorePoint(point.directory, sealed))


@pytest.mark.parametrize(
    ("backing", "backing_format", "why"),
    [
        ("nbd://host/x", "raw", "which is no path"),
        ('json:{"driver":"file","filename":"/etc/shadow"}', "raw", "which is no path"),
        ("file:/etc/shadow", "raw", "which is no path"),
        ("base.vmdk", "vmdk", "is of vmdk, and is not read"),
        ("/etc/shadow", "raw", "the guest's definition does not"),
        ("/proc/self/environ", "raw", "the guest's definition does not"),
        ("gone.raw", "raw", "is not in the snapshot, or is no file"),
        ("../../../../../../etc/shadow", "raw", "the guest's definition does not"),
    ],
)
def test_what_a_header_may_not_name(
    pool: Pool, backing: str, backing_format: str, why: str
) -> None:
    (pool.snapshot / "base.vmdk").write_bytes(b"x")
    pool.image("a.qcow2", backing, backing_format)
    with pytest.raises(DiskUnreadable, match=why):
        pool.tree("a.qcow2")


def test_no_format_below_is_no_raw(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU would look into it: whatever the guest has written there would be opened."""
    header = qemu_img.Header(str(pool.golden), "", "")
    monkeypatch.setattr(qemu_img, "header", lambda *_: header)
    pool.image("a.qcow2")
    with pytest.raises(DiskUnreadable, match="does not say of which format"):
        pool.tree("a.qcow2")


def test_an_image_on_itself(pool: Pool) -> None:
    pool.image("a.qcow2", "a.qcow2", "qcow2")
    with pytest.raises(DiskUnreadable, match="is behind too many others"):
        pool.tree("a.qcow2")


def test_no_symlink_leads_out_of_a_snapshot(pool: Pool) -> None:
    (pool.snapshot / "a.raw").symlink_to("/etc/shadow")
    with pytest.raises(DiskUnreadable, match="is a symlink that leads out"):
        pool.tree("a.raw", "raw")
    (pool.snapshot / "dir").symlink_to("/etc")
    pool.image("b.qcow2", "dir/shadow")
    with pytest.raises(DiskUnreadable, match="is a symlink that leads out"):
        pool.tree("b.qcow2")
    # Nothing in a snapshot changes, so one that leads to a place in there always does.
    (pool.snapshot / "real.raw").write_bytes(bytes(MIB))
    (pool.snapshot / "c.raw").symlink_to("real.raw")
    real = str(pool.snapshot / "real.raw")
    assert pool.tree("c.raw", "raw")["file"]["filename"] == real


def test_what_is_in_a_dataset_that_cannot_be_seen(pool: Pool) -> None:
    """Its snapshot is meant: what is at that path now is something else."""
    pool.named = [pool.root / "b.raw"]
    pool.image("a.qcow2", pool.root / "b.raw")
    point = pool.point()
    (disk,) = point.manifest.disks
    other = msgspec.structs.replace(
        disk, target="vdb", source=f"{pool.root}/locked/b.raw", dataset="tank/b", path="b.raw"
    )
    pool.unseen = {"tank/b": "tank/b: its key is not loaded"}
    manifest = msgspec.structs.replace(point.manifest, disks=(disk, other))
    snapshots = {name: Snapshot(name, "x", 1, 1) for name in ("tank/web", "tank/b")}
    seen = Seen(snapshots, {"tank/web": pool.snapshot}, {}, pool.unseen)
    places = Places(pool.config, RestorePoint(point.directory, manifest), seen, [])
    with pytest.raises(DiskUnreadable, match="its key is not loaded"):
        places.backing(f"{pool.root}/locked/b.raw")
