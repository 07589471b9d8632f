"""Views by the real libguestfs: what is in the disks comes out of them, and nothing stays.

`make libguestfs` runs these: each starts its machine, which takes half a minute without KVM. ZFS
alone is faked: the snapshot is a directory.
"""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.fakes.backup_scene import Scene
from tests.fakes.backup_scene import scene as scene
from tests.fakes.images import run_qemu_img
from zvmsnap.common import json_file
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import wait_until
from zvmsnap.files import ending, keeper, plan, tree
from zvmsnap.files.copy_out import copy_out
from zvmsnap.files.keeper import Opened
from zvmsnap.files.record import View, Views
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import mounts

guestfs = pytest.importorskip(
    "guestfs", reason="no python3-guestfs for this Python: nothing looks into disks here"
)
if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
    pytest.skip("libguestfs shows files to root alone, by /dev/fuse", allow_module_level=True)
if missing := [each for each in ("mkfs.ext4", "mkntfs", "ntfscp") if not shutil.which(each)]:
    pytest.skip(f"no {missing[0]} here, to make a disk", allow_module_level=True)

MIB = 1 << 20
BLOB = os.urandom(3 * MIB)
SHA = hashlib.sha256(BLOB).hexdigest()
read_table = mounts.read_table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disks: ext4; XFS (or ext4) in LVM on a partition; NTFS."""
    top = tmp_path_factory.mktemp("disks")
    blob = top / "blob"
    blob.write_bytes(BLOB)
    _make_ext4(top)
    _make_lvm(top)
    (top / "c.raw").write_bytes(b"")
    os.truncate(top / "c.raw", 16 * MIB)
    _run("mkntfs", "-q", "-F", "-p", "0", "-S", "63", "-H", "255", top / "c.raw")
    _run("ntfscp", "-q", "-f", top / "c.raw", blob, "Bericht.bin")
    return top


def _run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def _make_ext4(top: Path) -> None:
    content = top / "content"
    (content / "dir").mkdir(parents=True)
    (content / "dir" / "a name").write_bytes(BLOB)
    (content / "dir" / "a name").chmod(0o4755)
    (content / "dir" / "out").symlink_to("/etc/shadow")
    (content / "dir" / "in").symlink_to("a name")
    with (content / "hole").open("wb") as file:
        file.truncate(8 * MIB)
    _run("mkfs.ext4", "-q", "-F", "-d", content, top / "a.raw", "64M")


def _make_lvm(top: Path) -> None:
    disk = top / "b.raw"
    with disk.open("wb") as file:
        file.truncate(400 * MIB)
    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_backend("direct")
    handle.set_backend_setting("force_tcg", "1")
    handle.add_drive_opts(str(disk), format="raw")
    handle.launch()
    handle.part_disk("/dev/sda", "gpt")
    handle.pvcreate("/dev/sda1")
    handle.vgcreate("data", ["/dev/sda1"])
    handle.lvcreate("files", "data", 340)
    handle.mkfs("xfs" if handle.feature_available(["xfs"]) else "ext4", "/dev/data/files")
    handle.mount("/dev/data/files", "/")
    handle.upload(str(top / "blob"), "/blob")
    handle.shutdown()
    handle.close()


@pytest.fixture
def point(scene: Scene, built: Path, monkeypatch: pytest.MonkeyPatch) -> RestorePoint:
    """A point with these disks, the second one in an image on another."""
    for name in ("a.raw", "b.raw", "c.raw"):
        _run("cp", "--sparse=always", built / name, scene.mountpoint)
    top = scene.mountpoint / "b.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", scene.mountpoint / "b.raw", top)
    point = scene.point(
        "one",
        disks=[("vda", "raw", "a.raw"), ("vdb", "qcow2", "b.qcow2"), ("vdc", "raw", "c.raw")],
    )
    faked = scene.table

    def table() -> list[mounts.Mount]:
        return [*faked, *(each for each in read_table() if each.kind.startswith("fuse"))]

    monkeypatch.setattr(mounts, "read_table", table)
    # The view is of the snapshot: the images of now are others.
    (scene.mountpoint / "a.raw").unlink()
    (scene.mountpoint / "b.raw").write_bytes(b"")
    return point


@dataclass
class Kept:
    """A view that a process of its own holds."""

    view: View
    opened: Opened
    pid: int
    input: int

    def end(self) -> int:
        """As when its caller is done; returns how it ended."""
        os.close(self.input)
        return os.waitpid(self.pid, 0)[1]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.input)


@pytest.fixture
def kept(scene: Scene, point: RestorePoint) -> Iterator[Kept]:
    view = plan.plan_view(scene.config, point, by_device=True)
    its_input, ours = os.pipe()
    answer, its_answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            _keep(scene, view, its_input, its_answer)
            code = 0
        finally:
            os._exit(code)
    os.close(its_input)
    os.close(its_answer)
    with os.fdopen(answer, "rb") as told:
        line = told.readline()
    kept = Kept(view, json_file.decode(line, Opened), pid, ours)
    yield kept
    with suppress(OSError):
        kept.kill()
    ending.tidy(scene.config)


def _keep(scene: Scene, view: View, its_input: int, its_answer: int) -> None:
    view = msgspec.structs.replace(view, owner=Process.of(os.getpid()))
    closing = threading.Event()

    def wait_for_end() -> None:
        os.read(its_input, 1)
        closing.set()

    threading.Thread(target=wait_for_end, daemon=True).start()

    def tell(opened: Opened) -> None:
        os.write(its_answer, msgspec.json.encode(opened) + b"\n")
        os.close(its_answer)

    keeper.keep(scene.config, view, closing, tell)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_nothing_left(scene: Scene, view: View) -> None:
    assert Views(scene.config.journal_dir).all() == ([], [])
    assert not Path(view.work).exists()
    assert not [each for each in read_table() if each.mountpoint == view.mountpoint]
    assert ending._writers(view) == []


def test_ext4_lvm_and_ntfs(scene: Scene, kept: Kept, tmp_path: Path) -> None:
    opened, top = kept.opened, kept.view.mountpoint
    assert opened.places == ("/data-files", "/vda", "/vdc") and opened.left_out == ()
    assert opened.size_bytes == (64 + 400 + 16) * MIB
    with tree.found(top, "/vda/dir") as entry:
        items = {item.name: item for item in tree.listed(entry)}
        assert items["a name"].size_bytes == 3 * MIB and items["in"].target == "a name"
        target, copied = copy_out(entry, "dir", tmp_path / "out", opened.size_bytes)
    assert sha256(target / "a name") == sha256(target / "in") == SHA
    assert stat.S_IMODE((target / "a name").stat().st_mode) == 0o755
    assert copied.left_out == ["dir/out: is a symlink that leads out: /etc/shadow"]
    with tree.found(top, "/vda/hole") as entry:
        target, _ = copy_out(entry, "hole", tmp_path / "out", opened.size_bytes)
    assert (target.stat().st_size, target.stat().st_blocks) == (8 * MIB, 0)
    for path in ("/data-files/blob", "\\vdc\\BERICHT.BIN"):
        with tree.found(top, path, any_case=True) as entry:
            target, _ = copy_out(entry, path[-3:], tmp_path / "out", opened.size_bytes)
        assert sha256(target) == SHA
    with pytest.raises(OSError, match="Read-only"):
        Path(top, "vda", "new").touch()
    with pytest.raises(FilesImpossible), tree.found(top, "/vda/dir/out"):
        pass
    assert kept.end() == 0
    assert_nothing_left(scene, kept.view)


def test_a_process_that_is_killed(scene: Scene, kept: Kept) -> None:
    assert sha256(Path(kept.view.mountpoint, "vda", "dir", "a name")) == SHA
    assert ending.tidy(scene.config) == [] and ending.dead(scene.config) == ([], [])
    kept.kill()
    with pytest.raises(OSError):
        os.listdir(kept.view.mountpoint)
    (dead,), _ = ending.dead(scene.config)
    assert dead.name == kept.view.name
    assert ending.tidy(scene.config) == []
    assert wait_until(lambda: not ending._writers(kept.view), 10, 0.1)
    assert_nothing_left(scene, kept.view)
