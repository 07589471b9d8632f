"""Volumes, their partitions, and the device nodes of both.

Which volume a device is, and which part of it, says the kernel, by the number of the device. Names
below /dev are udev's: they come late, the links of partitions do not follow a rename of their
volume, and links by content (/dev/disk/by-...) lead to whichever copy udev has seen last.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.waiting import wait_until
from zvmsnap.zfs import zfs
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

_BLKZNAME = 0x8000_0000 | 256 << 16 | 0x12 << 8 | 125  # _IOR(0x12, 125, char[256]), sys/zvol.h
_BLKRRPART = 0x125F  # _IO(0x12, 95), linux/fs.h
_POLL_S = 0.05
_SOON_S = 2.0
_VOLMODE_NONE = "3"  # ZFS_VOLMODE_NONE, sys/fs/zfs.h
_SECTOR_BYTES = 512  # the kernel's, in sysfs, whatever the device has
_PARTITION = re.compile(r"-part\d+\Z")
_BY_NUMBER = Path("/sys/dev/block")
_BY_NAME = Path("/sys/class/block")


def device_of(volume: str, partition: Partition | None = None) -> str:
    """The path of the block device of a volume, or of one of its partitions.

    As zvol_id of OpenZFS, for udev, writes it: a blank in the name becomes a plus sign.
    """
    part = f"-part{partition.number}" if partition else ""
    return f"/dev/zvol/{volume.replace(' ', '+')}{part}"


def whole_of(path: str, devices: Container[str]) -> str | None:
    """Which of these devices of volumes a path below /dev/zvol is, or is a partition of.

    By the name alone: a volume may itself have one that ends as that of a partition.
    """
    return next((each for each in (path, _PARTITION.sub("", path)) if each in devices), None)


def wait_device(volume: str, timeout_s: float) -> None:
    """Wait until udev has made the volume's device, of this very volume. Raises ZfsFailed."""
    device = device_of(volume)
    whole = DiskLocation(volume, "")

    def appeared() -> bool:
        return location_of(device) == whole

    if wait_until(appeared, _SOON_S, _POLL_S):
        return
    if why := _why_no_device(volume):
        raise ZfsFailed(f"{device}: does not appear: {why}")
    if not wait_until(appeared, timeout_s - _SOON_S, _POLL_S):
        raise ZfsFailed(f"{device}: did not appear within {timeout_s:g} s; does udev run?")


def _why_no_device(volume: str) -> str | None:
    """Which setting keeps ZFS from making a device of the volume; None if none does."""
    mode = zfs.properties(volume, ("volmode",))["volmode"]
    if mode == "none":
        return f"{volume} has volmode=none: zfs set volmode=dev on it, or on the dataset above it"
    if mode == "default" and _parameter("zvol_volmode") == _VOLMODE_NONE:
        return "/sys/module/zfs/parameters/zvol_volmode is 3 (none)"
    if _parameter("zvol_inhibit_dev") == "1":
        return "/sys/module/zfs/parameters/zvol_inhibit_dev is 1"
    return None


def _parameter(name: str) -> str:
    try:
        return Path(f"/sys/module/zfs/parameters/{name}").read_text().strip()
    except OSError:
        return ""


def wait_partition(volume: str, partition: Partition, timeout_s: float) -> None:
    """Wait until the path of a partition leads to it, of this very volume.

    The device of the volume itself has come already. Raises ZfsFailed.
    """
    device = device_of(volume, partition)
    wanted = DiskLocation(volume, "", partition)
    if location_of(device) == wanted:
        return
    _look_again(volume, partition)
    # The link may still be that of another volume, which had this name before.
    _announce(_kernel_name(device))
    if not wait_until(lambda: location_of(device) == wanted, timeout_s, _POLL_S):
        seen = location_of(device) or "no device of a volume"
        raise ZfsFailed(
            f"{device}: is not {wanted} within {timeout_s:g} s, but {seen}: see zfs get volmode "
            f"{volume}"
        )


def rename_partitions(volume: str) -> None:
    """Let udev name the partitions of a renamed volume anew: it is told of the volume alone."""
    whole = _kernel_name(device_of(volume))
    for partition in _BY_NAME.glob(f"{whole}/{whole}p*"):
        _announce(partition.name)


def location_of(device: str) -> DiskLocation | None:
    """The volume, or its partition, behind a path such as /dev/zvol/... or /dev/zd16p1, links
    followed; None if it is no volume.
    """
    number = device_number(device)
    return location_at(number) if number is not None else None


def device_number(path: str) -> int | None:
    """The number of the block device to which a path leads; None if it leads to none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def location_at(number: int) -> DiskLocation | None:
    """The volume, or its partition, that has this device number; None if it is no volume."""
    directory = _BY_NUMBER / f"{os.major(number)}:{os.minor(number)}"
    partition = _partition_in(directory)
    real = directory.resolve()
    whole = real.parent.name if partition else real.name
    volume = _volume_of(f"/dev/{whole}") if whole.startswith("zd") else None
    return DiskLocation(volume, "", partition) if volume else None


def below(number: int) -> list[str]:
    """What a device of another kind lies on: paths of devices (LVM, device mapper), or of a file.

    The whole of it, if it is a partition of a loop device.
    """
    real = (_BY_NUMBER / f"{os.major(number)}:{os.minor(number)}").resolve()
    whole = real.parent if _partition_in(real) else real
    try:
        return [os.fsdecode((whole / "loop/backing_file").read_bytes()).removesuffix("\n")]
    except OSError:
        return [f"/dev/{each.name}" for each in sorted(whole.glob("slaves/*"))]


def held_by(volume: str) -> list[str]:
    """The devices of this host that lie on a volume, or on its partitions, as LVM calls them.

    Of a guest's disk there are none, unless the host takes the guest's volume group for one of its
    own: udev tells LVM of each volume that appears, see lvmautoactivation(7).
    """
    number = device_number(device_of(volume))
    if number is None:  # a filesystem, or a volume without a device
        return []
    whole = (_BY_NUMBER / f"{os.major(number)}:{os.minor(number)}").resolve()
    holders = whole.glob("holders/*"), whole.glob(f"{whole.name}p*/holders/*")
    return sorted({_mapped_name(each.name) for found in holders for each in found})


def _mapped_name(kernel_name: str) -> str:
    try:
        return (_BY_NAME / kernel_name / "dm/name").read_text().strip()
    except OSError:
        return kernel_name


def _partition_in(directory: Path) -> Partition | None:
    """The partition that a directory of sysfs describes; None of a whole device."""
    try:
        number, start, size = (
            int((directory / name).read_text()) for name in ("partition", "start", "size")
        )
    except (OSError, ValueError):
        return None
    return Partition(number, start * _SECTOR_BYTES, size * _SECTOR_BYTES)


def _volume_of(node: str) -> str | None:
    """The name of the volume, as ZFS has it now."""
    try:
        descriptor = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _BLKZNAME, bytes(256))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return answer.split(b"\0", 1)[0].decode() or None


def _look_again(volume: str, partition: Partition) -> None:
    """Let the kernel read the table of partitions again, if it has another one: after a rollback
    for instance. And let udev name the partitions anew.
    """
    whole = _kernel_name(device_of(volume))
    if _partition_in(_BY_NAME / whole / f"{whole}p{partition.number}") != partition:
        with suppress(OSError):
            descriptor = os.open(f"/dev/{whole}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _BLKRRPART)
            finally:
                os.close(descriptor)
    rename_partitions(volume)


def _announce(kernel_name: str) -> None:
    """Let udev look at a block device again; nothing, if there is no such device."""
    with suppress(OSError):
        (_BY_NAME / kernel_name / "uevent").write_text("change")


def _kernel_name(device: str) -> str:
    return os.path.basename(os.path.realpath(device))
