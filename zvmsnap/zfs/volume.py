"""Volumes and their device nodes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.waiting import wait_until
from zvmsnap.zfs import zfs

_BLKZNAME = 0x8000_0000 | 256 << 16 | 0x12 << 8 | 125  # _IOR(0x12, 125, char[256]), sys/zvol.h
_POLL_S = 0.05
_SOON_S = 2.0
_VOLMODE_NONE = "3"  # ZFS_VOLMODE_NONE, sys/fs/zfs.h


def device_of(volume: str) -> str:
    """The path of a volume's block device; udev writes a blank in its name as a plus sign."""
    return f"/dev/zvol/{volume.replace(' ', '+')}"


def wait_device(volume: str, timeout_s: float) -> None:
    """Wait until udev has made the volume's device, of this very volume. Raises ZfsFailed."""
    device = device_of(volume)

    def appeared() -> bool:
        return volume_of(device) == volume

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


def volume_of(device: str) -> str | None:
    """The volume behind a block device such as /dev/zvol/..., /dev/zd16 or a partition of one.

    The device itself is asked: symlinks and names may be wrong. None if it is no volume.
    """
    real = os.path.realpath(device)
    name = os.path.basename(real)
    if not name.startswith("zd"):
        return None
    if Path(f"/sys/class/block/{name}/partition").exists():
        real = "/dev/" + Path(f"/sys/class/block/{name}").resolve().parent.name
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _BLKZNAME, bytes(256))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return answer.split(b"\0", 1)[0].decode() or None
