"""Where a clone has what the point holds, and that no header of its images leads elsewhere."""

import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from tests.fakes.images import run_qemu_img
from zvmsnap.clone import own_places
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common.errors import CloneImpossible
from zvmsnap.disks import qemu_img
from zvmsnap.points.manifest import Disk, Manifest, OtherState
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount

TABLE = [
    Mount(1, 0, "/", "/", "", "ext4"),
    Mount(2, 1, "/", "/tank/web", "tank/web", "zfs"),
    Mount(3, 2, "/", "/tank/web/db", "tank/web/db", "zfs"),
    Mount(4, 2, "/", "/tank/web/other", "tank/web/other", "zfs"),
]
DISKS = (
    Disk("vda", "file", "raw", "/tank/web/a.raw", "tank/web", "a.raw"),
    Disk("vdb", "file", "raw", "/tank/web/db/b.raw", "tank/web/db", "b.raw"),
    Disk("vdc", "block", "raw", "/dev/zvol/tank/vol", "tank/vol", ""),
    # It was mounted elsewhere when the point was made.
    Disk("vdd", "file", "raw", "/then/c.raw", "tank/moved", "c.raw"),
)
STATE = (
    OtherState("data file of disk vda", "/fast/then/d.raw", "fast/data", "d.raw"),
    OtherState("data file of disk vdb", "/srv/d.raw", why="it is on no dataset"),
)
DATASETS = {
    "fast/data": ("fast/data-w2", "fast/data"),
    "tank/web": ("tank/w2", "tank/web"),
    "tank/web/db": ("tank/w2/db", "tank/web/db"),
    "tank/vol": ("tank/vol-w2", "tank/vol.before-1"),
    "tank/a-part3": ("tank/a-w2", "tank/a-part3"),
    "tank/moved": ("tank/moved-w2", "tank/moved"),
}
CLONES = "/var/lib/zvmsnap/clones"


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/tank/web/base.qcow2", f"{CLONES}/tank/w2/base.qcow2"),
        ("/tank/web/deep/base.qcow2", f"{CLONES}/tank/w2/deep/base.qcow2"),
        ("/tank/web/../web/base.qcow2", f"{CLONES}/tank/w2/base.qcow2"),
        ("/tank/web", f"{CLONES}/tank/w2"),
        ("/tank/web/db/x", f"{CLONES}/tank/w2/db/x"),
        ("/then/x", f"{CLONES}/tank/moved-w2/x"),
        ("/fast/then/d.raw", f"{CLONES}/fast/data-w2/d.raw"),
        ("/srv/d.raw", None),
        ("/tank/web/other/x", None),
        ("/tank/web2/x", None),
        ("/tank/x", None),
        ("/dev/zvol/tank/vol", "/dev/zvol/tank/vol-w2"),
        ("/dev/zvol/tank/vol-part1", "/dev/zvol/tank/vol-w2-part1"),
        ("/dev/zvol/tank/vol.before-1", "/dev/zvol/tank/vol-w2"),
        ("/dev/zvol/tank/vol2", None),
        ("/dev/zvol/tank/vol-partx", None),
        ("/dev/zvol/tank/a-part3", "/dev/zvol/tank/a-w2"),
        ("/dev/zvol/tank/a-part3-part1", "/dev/zvol/tank/a-w2-part1"),
    ],
)
def test_of(
    manifest: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, path: str, own: str | None
) -> None:
    monkeypatch.setattr(mounts, "read_table", lambda: TABLE)
    places = own_places.planned(manifest(disks=DISKS, other_state=STATE), DATASETS)
    assert places.of(path) == own
    assert not places.has(path)
    if own:
        assert places.has(own)


def test_only_what_really_is_in_the_clone_counts(
    manifest: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web, clone = tmp_path / "web", tmp_path / "w2"
    table = [
        Mount(1, 0, "/", "/", "", "ext4"),
        Mount(2, 1, "/", str(web), "tank/web", "zfs"),
        Mount(3, 1, "/", str(clone), "tank/w2", "zfs"),
    ]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    for directory in (web, clone):
        directory.mkdir()
        (directory / "a.raw").touch()
    (web / "new.raw").touch()
    (clone / "link.raw").symlink_to(web / "new.raw")
    disk = Disk("vda", "file", "raw", str(web / "a.raw"), "tank/web", "a.raw")
    places = own_places.made(manifest(disks=(disk,)), {"tank/web": ("tank/w2", "tank/web")})
    found = {name: places.of(str(web / name)) for name in ("a.raw", "new.raw", "link.raw")}
    assert found == {"a.raw": str(clone / "a.raw"), "new.raw": None, "link.raw": None}


def test_a_definition_names_the_copies() -> None:
    root = ET.fromstring(
        "<domain><name>/w/x</name><os><kernel> /w/vmlinuz </kernel><cmdline>/w/x</cmdline></os>"
        "<devices><disk type='file'><source file='/w/a'><dataStore type='file'>"
        "<source file='/w/d'/></dataStore></source><backingStore type='file'><source file='/w/b'/>"
        "<backingStore type='file'><source file='/golden'/></backingStore></backingStore>"
        "<target dev='vda'/></disk><filesystem><source dir='/w/s'/><target dir='/w/s'/>"
        "</filesystem></devices></domain>"
    )
    OwnPlaces({PurePath("/w"): PurePath("/own")}).give(root)
    assert root.findtext("name") == root.findtext("os/cmdline") == "/w/x"
    assert root.findtext("os/kernel") == "/own/vmlinuz"
    named = {
        element.get("file", "") or element.get("dir", "")
        for element in root.iter()
        if element.attrib
    }
    assert named - {""} == {"/own/a", "/own/d", "/own/b", "/golden", "/own/s", "/w/s"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Those of the original and of its clone."""
    return tmp_path / "web, old", tmp_path / "w2, new"


@pytest.fixture
def places(folders: tuple[Path, Path]) -> OwnPlaces:
    return OwnPlaces({PurePath(folders[0]): PurePath(folders[1])})


def cloned(folders: tuple[Path, Path]) -> None:
    shutil.copytree(*folders)
    # The original's are out of reach: whoever opened one would fail.
    folders[0].rename(folders[0].with_name("gone"))


def image(path: Path, *options: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    run_qemu_img("create", "-q", "-f", "qcow2", *options, path, "1M")
    return path


def test_absolute_backing_files_down_the_chain(
    folders: tuple[Path, Path], places: OwnPlaces, tmp_path: Path
) -> None:
    golden = image(tmp_path / "golden.qcow2")
    base = image(folders[0] / "base.qcow2", "-F", "qcow2", "-b", str(golden))
    middle = image(folders[0] / "middle.qcow2", "-F", "qcow2", "-b", str(base))
    image(folders[0] / "a.qcow2", "-F", "qcow2", "-b", "middle.qcow2")
    cloned(folders)
    top = folders[1] / "a.qcow2"
    own_places.take_over([("file", str(top), "qcow2")], places)
    layers = [layer.path for layer in qemu_img.chain(str(top))]
    assert layers == [
        str(top),
        *(str(folders[1] / each.name) for each in (middle, base)),
        str(golden),
    ]


@pytest.mark.parametrize("relative", [False, True])
def test_data_file(folders: tuple[Path, Path], places: OwnPlaces, relative: bool) -> None:
    data = folders[0] / "a.raw"
    top = image(folders[0] / "a.qcow2", "-o", f"data_file={str(data).replace(',', ',,')}")
    if relative:
        run_qemu_img(
            "amend", "-o", "data_file=a.raw", "--image-opts",
            f"driver=qcow2,file.filename={top},data-file.filename={data}".replace(", ", ",, "),
        )  # fmt: skip
    cloned(folders)
    own = folders[1] / "a.qcow2"
    own_places.take_over([("file", str(own), "qcow2")], places)
    assert qemu_img.header(str(own), "qcow2").data_file == str(folders[1] / "a.raw")
    run_qemu_img("check", "-q", own)


def test_symlinks_that_lead_to_the_original(folders: tuple[Path, Path], places: OwnPlaces) -> None:
    base = image(folders[0] / "base.qcow2")
    image(folders[0] / "a.qcow2", "-F", "qcow2", "-b", str(base))
    run_qemu_img("rebase", "-u", "-F", "qcow2", "-b", "link.qcow2", folders[0] / "a.qcow2")
    cloned(folders)
    (folders[1] / "link.qcow2").symlink_to(base)
    top = folders[1] / "a.qcow2"
    own_places.take_over([("file", str(top), "qcow2")], places)
    assert [layer.path for layer in qemu_img.chain(str(top))][1:] == [
        str(folders[1] / "base.qcow2")
    ]


def test_data_file_that_the_point_does_not_have(
    folders: tuple[Path, Path], places: OwnPlaces, tmp_path: Path
) -> None:
    data = tmp_path / "elsewhere.raw"
    top = image(folders[0] / "a.qcow2", "-o", f"data_file={data}")
    before = data.read_bytes()
    cloned(folders)
    with pytest.raises(CloneImpossible, match=r"a\.qcow2 is in .*elsewhere\.raw, which is in no"):
        own_places.take_over([("file", str(folders[1] / top.name), "qcow2")], places)
    assert data.read_bytes() == before


def test_base_that_is_named_in_another_way(folders: tuple[Path, Path], places: OwnPlaces) -> None:
    base = image(folders[0] / "base.qcow2")
    named = f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}'
    image(folders[0] / "a.qcow2", "-F", "qcow2", "-b", named)
    cloned(folders)
    with pytest.raises(CloneImpossible, match="names its backing file as json:"):
        own_places.take_over([("file", str(folders[1] / "a.qcow2"), "qcow2")], places)


def test_raw_images_have_no_header(folders: tuple[Path, Path], places: OwnPlaces) -> None:
    """What a guest writes to the begin of a raw disk is not taken for one."""
    base = image(folders[0] / "base.qcow2")
    image(folders[0] / "a.raw", "-F", "qcow2", "-b", str(base))
    cloned(folders)
    before = (folders[1] / "a.raw").read_bytes()
    own_places.take_over([("file", str(folders[1] / "a.raw"), "raw")], places)
    assert (folders[1] / "a.raw").read_bytes() == before
