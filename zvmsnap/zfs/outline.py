"""What can be said of datasets with one `zfs` process, the mount table, and modules that load fast.

For hooks/idle, which asks before anything else is loaded: so it is less than zfs/zfs and zfs/mounts
say, and whatever is not certain is left to these.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # what is imported for types alone takes its time, too
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILESYSTEM = "filesystem"

_TABLE = "/proc/self/mountinfo"
_MODE = "zvmsnap:mode"
_OFF = "off"
_UNSET = "-"
_BLKZNAME = 0x8000_0000 | 256 << 16 | 0x12 << 8 | 125  # as zfs/volume
_OUT, _ERRORS = 1, 2
_ENTRIES_MAX = 200
# What the kernel escapes in the mount table; a backslash last.
_ESCAPED = ((rb"\040", b" "), (rb"\011", b"\t"), (rb"\012", b"\n"), (rb"\134", b"\\"))


def not_excluded(datasets: Sequence[str], types: Iterable[str]) -> dict[str, str] | None:
    """These datasets and all below them, but those with the property zvmsnap:mode=off.

    By name: `filesystem` or `volume`. Off for all of `types` (hourly ...), as capture/eligibility
    has it. None if ZFS does not say that. Raises OSError.

    The value of a property may hold any byte, and so make lines of other datasets. None of these
    takes a line away that ZFS prints of a dataset.
    """
    modes = [_MODE, *(f"{_MODE}:{each}" for each in types)]
    columns = ",".join(("name", "type", *modes))
    listed = ("-Hp", "-r", "-t", "filesystem,volume", "-o", columns)
    printed = _output("zfs", "list", *listed, *datasets)
    if printed is None:
        return None
    kinds: dict[str, str] = {}
    for line in printed.decode(errors="surrogateescape").split("\n")[:-1]:
        words = line.split("\t")
        if len(words) != len(modes) + 2:
            return None
        name, kind, mode, *of_types = words
        if any((mode if own == _UNSET else own) != _OFF for own in of_types):
            kinds[name] = kind
    return kinds


def guids(datasets: Sequence[str]) -> set[str] | None:
    """The guids of these datasets, as digits; None if ZFS does not say all. Raises OSError."""
    printed = _output("zfs", "list", "-Hp", "-o", "guid", *datasets)
    return set(printed.decode().split()) if printed is not None else None


def holds_files(filesystems: Iterable[str], table: str = _TABLE) -> bool:
    """May any of these file systems hold a file at a path that leads there?

    | it                                                    | holds a file |
    |-------------------------------------------------------|--------------|
    | is not mounted                                        | no           |
    | is mounted once, as a whole, and can be seen there,   | no           |
    | and has nothing but a few directories                 |              |
    | anything else                                         | maybe        |

    Raises OSError.
    """
    mounts = _mounts(set(filesystems), table)
    if len({dataset for dataset, _, _, _ in mounts}) != len(mounts):
        return True
    return any(
        root != b"/" or _numbers(os.stat(place).st_dev) != device or _has_files(place)
        for _, device, root, place in mounts
    )


def holds_any(
    datasets: Iterable[str], paths: Iterable[str], devices: Iterable[int], table: str = _TABLE
) -> bool:
    """May one of these paths lead to one of these datasets, or one of these devices be on it?

    Devices are numbers; one that is no volume may lie on anything. Raises OSError.
    """
    names = set(datasets)
    mounted = {device for _, device, _, _ in _mounts(names, table)}
    return any(_may_lead_to(path, names, mounted) for path in paths) or any(
        _may_be_on(number, names) for number in devices
    )


def _may_lead_to(path: str, names: set[str], mounted: set[str]) -> bool:
    real = os.path.realpath(path)
    while True:
        try:
            status = os.stat(real)
        except FileNotFoundError:
            real = os.path.dirname(real)  # where it would be
            continue
        if stat.S_ISBLK(status.st_mode):
            return _may_be_on(status.st_rdev, names)
        return _numbers(status.st_dev) in mounted


def _may_be_on(number: int, names: set[str]) -> bool:
    volume = _volume(number)
    return volume is None or volume in names


def _volume(number: int) -> str | None:
    """The volume that this device is, or is a partition of; None if it is no volume."""
    real = os.path.realpath(f"/sys/dev/block/{_numbers(number)}")
    node = os.path.basename(os.path.dirname(real) if os.path.exists(f"{real}/partition") else real)
    if not node.startswith("zd"):
        return None
    import fcntl

    descriptor = os.open(f"/dev/{node}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(descriptor, _BLKZNAME, bytes(256))
    finally:
        os.close(descriptor)
    return answer.split(b"\0", 1)[0].decode()


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _mounts(datasets: set[str], table: str) -> list[tuple[str, str, bytes, str]]:
    """Dataset, number of the device, the directory in it, and where that is mounted."""
    mounts = []
    with open(table, "rb") as file:
        lines = file.read().split(b"\n")[:-1]
    for line in lines:
        before, _, after = line.partition(b" - ")
        _, _, device, root, place = before.split(b" ")[:5]
        kind, source = after.split(b" ")[:2]
        dataset = os.fsdecode(_unescaped(source))
        if kind == b"zfs" and dataset in datasets:
            mounts.append((dataset, device.decode(), root, os.fsdecode(_unescaped(place))))
    return mounts


def _unescaped(text: bytes) -> bytes:
    for escaped, byte in _ESCAPED:
        text = text.replace(escaped, byte)
    return text


def _has_files(top: str) -> bool:
    """Is there anything but a few directories in it, as far as it is one file system?"""
    directories = [top]
    entries = 0
    device = os.stat(top).st_dev
    while directories:
        directory = directories.pop()
        for name in os.listdir(directory):
            path = f"{directory}/{name}"
            status = os.lstat(path)
            entries += 1
            if not stat.S_ISDIR(status.st_mode) or entries > _ENTRIES_MAX:
                return True
            # Of snapshots nobody writes anything; on another device another file system is mounted.
            if status.st_dev == device and path != f"{top}/.zfs":
                directories.append(path)
    return False


def _output(*words: str) -> bytes | None:
    """What a program prints; None if it fails. Raises OSError."""
    reading, writing = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, _ERRORS, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, writing, _OUT),
    ]
    try:
        process = os.posix_spawnp(words[0], words, os.environ, file_actions=actions)
    finally:
        os.close(writing)
    with open(reading, "rb") as file:
        printed = file.read()
    return printed if os.waitpid(process, 0)[1] == 0 else None
