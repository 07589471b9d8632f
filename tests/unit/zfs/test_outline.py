"""What is said of datasets before anything is loaded."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.zfs import outline, volume

Zfs = Callable[..., None]


@pytest.fixture
def zfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zfs:
    """A program of that name, which prints these lines and notes what it was asked."""

    def make(*lines: str, code: int = 0) -> None:
        (tmp_path / "printed").write_text("".join(f"{line}\n" for line in lines))
        program = tmp_path / "bin" / "zfs"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\ncat {tmp_path}/printed\n'
            f"echo wrong >&2\nexit {code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(
    ("types", "lines", "kinds"),
    [
        pytest.param(
            ("hourly",),
            ["tank\tfilesystem\t-\t-", "tank/my vm\tvolume\t-\t-"],
            {"tank": "filesystem", "tank/my vm": "volume"},
            id="no property",
        ),
        pytest.param(
            ("hourly",),
            ["t\tfilesystem\toff\t-", "t/a\tvolume\toff\tmemory", "t/b\tvolume\tcrash\toff"],
            {"t/a": "volume"},
            id="off, but for one",
        ),
        pytest.param(
            ("hourly", "daily"),
            ["tank\tvolume\t-\toff\toff", "tank/a\tvolume\t-\toff\t-"],
            {"tank/a": "volume"},
            id="off for all types, or for one",
        ),
        pytest.param(
            ("manual",),
            ["tank\tvolume\tOFF\t-", "tank/a\tvolume\toffs\t-"],
            {"tank": "volume", "tank/a": "volume"},
            id="no such value",
        ),
        pytest.param(
            ("hourly",),
            ["a\tvolume\toff", "b\tvolume\toff\t-"],
            None,
            id="a value with a line break",
        ),
        pytest.param(
            ("hourly",),
            ["a\tvolume\tx\ty\t-"],
            None,
            id="a value with a tab",
        ),
        pytest.param(
            ("hourly",),
            ["a\tfilesystem\toff\t-", "b\tfilesystem\toff\t-\t-", "b\tvolume\t-\t-"],
            None,
            id="a value that makes a line of another",
        ),
        pytest.param(
            ("hourly",),
            ["a\tfilesystem\toff\toff", "b\tfilesystem\toff\t-", "b\tvolume\t-\t-"],
            {"b": "volume"},
            id="the line of the other stays",
        ),
    ],
)  # fmt: skip
def test_datasets_that_are_not_excluded(
    zfs: Zfs, tmp_path: Path, types: tuple[str, ...], lines: list[str], kinds: dict[str, str] | None
) -> None:
    zfs(*lines)
    assert outline.not_excluded(["tank", "x"], types) == kinds
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    modes = ",".join(["zvmsnap:mode", *(f"zvmsnap:mode:{each}" for each in types)])
    assert asked == f"list -Hp -r -t filesystem,volume -o name,type,{modes} tank x"


def test_zfs_that_fails_says_nothing(zfs: Zfs, tmp_path: Path) -> None:
    zfs("tank\tfilesystem\t-\t-", code=1)
    assert outline.not_excluded(["tank", "none"], ["hourly"]) is None


def test_guids(zfs: Zfs, tmp_path: Path) -> None:
    zfs("17", "18446744073709551615")
    assert outline.guids(["tank/my vm", "x"]) == {"17", "18446744073709551615"}
    assert (tmp_path / "asked").read_text() == "list -Hp -o guid tank/my vm x\n"
    zfs("17", code=1)
    assert outline.guids(["tank/my vm", "x"]) is None


def test_zfs_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError):
        outline.not_excluded(["tank"], ["hourly"])


@pytest.fixture
def mounted(tmp_path: Path) -> Callable[..., str]:
    """A mount table: of each line the dataset, where it is mounted, and what is seen there."""
    number = tmp_path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"

    def make(*mounts: tuple[str, Path, str], kind: str = "zfs", device: str = device) -> str:
        table = tmp_path / "table"
        lines = [
            f"{30 + each} 1 {device} {root} {str(place).replace(' ', chr(92) + '040')} rw - {kind} "
            f"{name.replace(' ', chr(92) + '040')} rw\n"
            for each, (name, place, root) in enumerate(mounts)
        ]
        table.write_text("".join(lines))
        return str(table)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file system with directories alone."""
    (tmp_path / "a b" / "guests" / "web").mkdir(parents=True)
    return tmp_path / "a b"


Mounted = Callable[..., str]


def test_it_is_not_mounted(mounted: Mounted, place: Path) -> None:
    table = mounted(("tank/vm/x", place, "/"), ("tank", place, "/"))
    assert not outline.holds_files(["tank/vm", "tank/v"], table)
    assert not outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/"), kind="ext4"))


def test_it_has_directories_alone(mounted: Mounted, place: Path) -> None:
    assert not outline.holds_files(["tank/my vm"], mounted(("tank/my vm", place, "/")))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_text(""), id="file"),
        pytest.param(lambda path: path.symlink_to("web"), id="symlink"),
        pytest.param(lambda path: os.mkfifo(path), id="pipe"),
        pytest.param(lambda path: [path.with_name(f"x{n}").mkdir() for n in range(300)], id="many"),
    ],
)
@pytest.mark.parametrize("below", ["", "guests/web"])
def test_it_may_hold_a_file(
    mounted: Mounted, place: Path, make: Callable[[Path], object], below: str
) -> None:
    make(place / below / "disk")
    assert outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/")))
    assert outline.holds_files(["tank", "tank/vm"], mounted(("tank/vm", place, "/")))
    assert not outline.holds_files(["tank"], mounted(("tank/vm", place, "/")))


def test_what_is_mounted_in_it_is_another_file_system(
    mounted: Mounted, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "guests" / "disk").write_text("")
    lstat = os.lstat

    def elsewhere(path: str) -> os.stat_result:
        status = list(lstat(path))
        if path.endswith("/guests"):
            status[2] += 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "lstat", elsewhere)
    assert not outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/")))


def test_snapshots_that_can_be_seen_are_no_files_of_it(mounted: Mounted, place: Path) -> None:
    (place / ".zfs" / "snapshot" / "x").mkdir(parents=True)
    (place / ".zfs" / "snapshot" / "x" / "disk").write_text("")
    assert not outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/")))
    (place / "guests" / ".zfs").mkdir()
    (place / "guests" / ".zfs" / "disk").write_text("")
    assert outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/")))


def test_it_cannot_be_seen_as_a_whole(mounted: Mounted, place: Path) -> None:
    assert outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/guests")))
    assert outline.holds_files(["tank/vm"], mounted(("tank/vm", place, "/"), device="0:9999"))
    assert outline.holds_files(
        ["tank/vm"], mounted(("tank/vm", place, "/"), ("tank/vm", place, "/"))
    )


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        pytest.param("guests/web/disk", True, id="file"),
        pytest.param("guests/db/disk", True, id="would be one"),
        pytest.param("guests", True, id="directory"),
        pytest.param("../link", True, id="symlink to one"),
        pytest.param("/proc/version", False, id="of another file system"),
        pytest.param("/proc/none", False, id="would be one of another"),
        pytest.param("/dev/null", False, id="device, but no disk"),
    ],
)
def test_paths_that_lead_to_a_file_system(
    mounted: Mounted, place: Path, path: str, holds: bool
) -> None:
    (place / "guests" / "web" / "disk").write_text("")
    (place.parent / "link").symlink_to(place / "guests" / "web" / "disk")
    table_of_other = mounted(("tank", place, "/"), device="0:9999")
    asked = [str(place / path)]
    assert not outline.holds_any(["tank", "tank/my vm"], asked, (), table_of_other)
    table = mounted(("tank/my vm", place, "/"))
    assert outline.holds_any(["tank", "tank/my vm"], asked, (), table) is holds
    assert outline.holds_any(["tank/my vm"], ["/proc/none", *asked], (), table) is holds
    assert not outline.holds_any(["tank"], asked, (), table)


@pytest.mark.parametrize(("is_on", "holds"), [("tank/vm/v", True), ("tank/v", False), (None, True)])
def test_devices_that_may_lie_on_a_dataset(
    mounted: Mounted,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_on: str | None,
    holds: bool,
) -> None:
    (place.parent / "device").write_text("")
    own = os.stat
    block = os.stat_result([stat.S_IFBLK | 0o600, *list(own("/proc"))[1:]], {"st_rdev": 0x123})
    table = mounted(("tank/vm", place, "/"))
    asked = []

    def volume_of(number: int) -> str | None:
        asked.append(number)
        return is_on

    monkeypatch.setattr(os, "stat", lambda _path: block)
    monkeypatch.setattr(outline, "_volume", volume_of)
    names = ["tank/vm", "tank/vm/v"]
    assert outline.holds_any(names, [str(place.parent / "device")], (), table) is holds
    assert outline.holds_any(names, (), [0x123], table) is holds
    assert asked == [0x123, 0x123]


def test_device_of_this_machine_is_no_volume() -> None:
    numbers = [path.name.split(":") for path in Path("/sys/dev/block").glob("*:*")]
    devices = [os.makedev(int(major), int(minor)) for major, minor in numbers]
    assert {outline._volume(each) for each in (*devices[:5], os.makedev(9999, 1))} == {None}


def test_how_the_kernel_is_asked_for_a_volume() -> None:
    assert outline._BLKZNAME == volume._BLKZNAME


def test_path_through_a_file(mounted: Mounted, place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        outline.holds_any(["tank/vm"], [f"{place}/file/x"], (), mounted(("tank/vm", place, "/")))


def test_the_mount_table_of_this_machine() -> None:
    assert not outline.holds_files(["no such/dataset"])
