import os
import stat
import time
from pathlib import Path

import pytest

from zvmsnap.virt import qemu_process
from zvmsnap.virt.qemu_process import QemuProcess

UUID, OTHER = "c0ffee00-0000-4000-8000-000000000001", "c0ffee00-0000-4000-8000-000000000002"
NULL, ZERO = (os.stat(f"/dev/{name}").st_rdev for name in ("null", "zero"))


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some processes; /dev/null and /dev/zero count as block devices here."""
    monkeypatch.setattr(qemu_process, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(qemu_process, "_PID_FILES", tmp_path / "pids")
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISCHR)
    (tmp_path / "pids").mkdir()
    process(tmp_path / "proc/1", "init", namespace="mnt:[1]")
    return tmp_path / "proc"


def process(directory: Path, *words: str, namespace: str = "mnt:[2]", **opened: str) -> Path:
    for name in ("fd", "ns"):
        (directory / name).mkdir(parents=True)
    (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (directory / "ns/mnt").symlink_to(namespace)
    (directory / "root").symlink_to("/")
    for number, path in enumerate(opened.values(), 3):
        (directory / f"fd/{number}").symlink_to(path)
    return directory


@pytest.mark.parametrize(
    ("noted", "found"),
    [
        pytest.param("20", "20", id="noted"),
        pytest.param(None, "20", id="libvirt keeps its notes elsewhere"),
        pytest.param("30", "20", id="the number is another guest's by now"),
        pytest.param("1", "20", id="the number is anybody's by now"),
        pytest.param("7", "20", id="no such process"),
        pytest.param("", "20", id="empty"),
        pytest.param("../20x", "20", id="damaged"),
    ],
)
def test_whose_process(proc: Path, noted: str | None, found: str) -> None:
    process(proc / "20", "/usr/bin/qemu", "-uuid", UUID, "-S")
    process(proc / "30", "/usr/bin/qemu", "-uuid", OTHER)
    process(proc / "40", "vim", UUID)
    if noted is not None:
        (proc.parent / "pids/web.pid").write_text(f"{noted}\n")
    seen = QemuProcess.find("web", UUID)
    assert seen and seen._directory == proc / found


def test_what_it_has_open(proc: Path) -> None:
    process(proc / "20", "-uuid", UUID, disk="/tank/vda.raw", gone="/srv/vda.qcow2 (deleted)")
    seen = QemuProcess.find("web", UUID)
    assert seen and sorted(seen.open_paths) == ["/srv/vda.qcow2 (deleted)", "/tank/vda.raw"]


def test_no_process(proc: Path) -> None:
    assert QemuProcess.find("web", UUID) is None


@pytest.mark.parametrize(("error", "seen"), [(PermissionError, False), (ProcessLookupError, True)])
def test_process_that_may_not_be_looked_at(
    proc: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], seen: bool
) -> None:
    process(proc / "20", "/usr/bin/qemu", "-uuid", UUID)
    (proc.parent / "pids/web.pid").write_text("20")
    listdir = os.listdir

    def denied(path: Path) -> list[str]:
        if path == proc / "20/fd":
            raise error
        return listdir(path)

    monkeypatch.setattr(os, "listdir", denied)
    assert (QemuProcess.find("web", UUID) is not None) is seen


def test_devices_are_those_that_are_open(proc: Path) -> None:
    # zero is there, but not open.
    qemu = QemuProcess(process(proc / "20", null="/dev/null", gone="/dev/none", pipe="pipe:[7]"))
    assert qemu.device("/dev/null") == NULL
    assert qemu.device("/dev/zero") is None
    assert qemu.device("/dev/none") is None


def test_a_device_is_what_the_process_knows_by_that_name(proc: Path, tmp_path: Path) -> None:
    # In a /dev of its own libvirt makes such links, which are absolute.
    directory = process(proc / "20", null="/dev/null")
    (directory / "root").unlink()
    (directory / "root/links").mkdir(parents=True)
    (directory / "root/dev").symlink_to("/dev")
    (directory / "root/links/by-uuid").symlink_to("/links/../dev/null")
    (directory / "root/links/relative").symlink_to("by-uuid")
    (directory / "root/links/round").symlink_to("round")
    qemu = QemuProcess(directory)
    assert qemu.device("/links/by-uuid") == qemu.device("/links/relative") == NULL
    assert qemu.device("/links/round") is None


def test_files_are_those_that_are_open(proc: Path, tmp_path: Path) -> None:
    image = tmp_path / "web.raw"
    image.touch()
    (tmp_path / "link.raw").symlink_to(image)
    qemu = QemuProcess(process(proc / "20", image=str(image), server="/no/answer"))
    assert qemu.has_file(str(image))
    assert qemu.has_file(str(tmp_path / "link.raw"))
    assert not qemu.has_file(str(tmp_path / "other.raw"))
    # One of the same name elsewhere is another one.
    (tmp_path / "of-another").mkdir()
    (tmp_path / "of-another/web.raw").touch()
    assert not qemu.has_file(str(tmp_path / "of-another/web.raw"))


def test_a_file_that_was_replaced_is_not_open(proc: Path, tmp_path: Path) -> None:
    image, kept = tmp_path / "web.raw", tmp_path / "kept.raw"
    image.touch()
    directory = process(proc / "20", image=str(image))
    image.rename(kept)
    image.touch()
    # The kernel follows the file, and says so.
    (directory / "fd/3").unlink()
    (directory / "fd/3").symlink_to(kept)
    assert not QemuProcess(directory).has_file(str(image))
    assert QemuProcess(directory).has_file(str(kept))


@pytest.mark.parametrize(("namespace", "own"), [("mnt:[2]", True), ("mnt:[1]", False)])
def test_names_of_its_own(proc: Path, namespace: str, own: bool) -> None:
    directory = process(proc / "20", namespace=namespace)
    assert QemuProcess(directory).has_own_names is own


def test_a_process_that_has_ended(proc: Path) -> None:
    qemu = QemuProcess(proc / "20")
    assert qemu.device("/dev/null") is None
    assert not qemu.has_file("/etc/hostname")
    assert not qemu.has_own_names


def test_memory_that_it_uses(proc: Path) -> None:
    directory = process(proc / "20")
    qemu = QemuProcess(directory)
    assert qemu.memory_bytes() == 0
    (directory / "status").write_text(
        "Name:\tqemu\nVmSize:\t 90000 kB\nVmRSS:\t  500 kB\nVmSwap:\t   20 kB\n"
        "HugetlbPages:\t 2048 kB\nThreads:\t3\n"
    )
    assert qemu.memory_bytes() == 2568 << 10


def progress(directory: Path, read_bytes: int, worked_ticks: int) -> None:
    (directory / "io").write_text(f"rchar: {read_bytes}\nwchar: 0\nsyscr: 5\n")
    fields = ["S", *["0"] * 10, str(worked_ticks), "0", *["0"] * 9]
    (directory / "stat").write_text(f"20 (qemu) {' '.join(fields)}\n")


def test_load_that_does_not_go_on(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    ticks = os.sysconf("SC_CLK_TCK")

    def stuck_after(seconds: float) -> bool:
        now_s[0] += seconds
        return watch.is_stuck()

    watch = qemu_process.LoadWatch("web", UUID)
    assert not stuck_after(299)  # libvirt has not started QEMU yet
    qemu = process(proc / "20", "qemu", "-uuid", UUID)
    progress(qemu, 0, 20 * ticks)  # it gets its RAM ready
    assert not stuck_after(200)
    for gigabytes in range(1, 257):
        progress(qemu, gigabytes << 30, 20 * ticks)
        assert not stuck_after(290)  # a very slow disk
    progress(qemu, (256 << 30) + 80_000, 34 * ticks)  # what one that only waits does
    assert not stuck_after(299)
    assert stuck_after(1)
    progress(qemu, (256 << 30) + 80_000, 36 * ticks)
    assert not stuck_after(1)


def test_load_of_which_qemu_has_ended(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt says so by itself."""
    assert QemuProcess(proc / "20").progress() == (0, 0.0)
