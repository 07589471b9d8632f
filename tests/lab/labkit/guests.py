"""Counting guests in the lab: make them, and ask them what they saw.

The guest (tests/lab/guest/counter.S) prints a count 4.5 times a second and keeps it on
every disk and in RAM; when the two differ, it says so and stops.
"""

import base64
import re
import time

from labkit import bootsector
from labkit.domains import (
    DISK_MIB,
    NVRAM_DIR,
    SERIAL_DIR,
    Disk,
    Host,
    define,
    domain_xml,
    make_disk,
)
from labkit.errors import LabError, NoSuchFile

__all__ = ["DISK_MIB", "NVRAM_DIR", "SERIAL_DIR", "Disk", "Host", "boots", "counts", "define",
           "disk_count", "domain_xml", "make_disk", "mismatches", "serial", "serial_size_bytes",
           "start", "wait_counts"]


def start(lab: Host, name: str) -> None:
    """Start a counting guest and wait until it counts."""
    from_byte = serial_size_bytes(lab, name)
    lab.run(f"virsh -q start {name}")
    wait_counts(lab, name, 0, since_byte=from_byte)


def serial_size_bytes(lab: Host, name: str) -> int:
    """How much the guest has printed so far: a `since_byte` for later."""
    return len(_log(lab, name))


def serial(lab: Host, name: str, since_byte: int = 0) -> str:
    """What a guest has printed."""
    said = _log(lab, name)[since_byte:].decode(errors="replace")
    # A power cut leaves a file as long as it was, but for what had not been written yet.
    return said.replace("\0", "")


def _log(lab: Host, name: str) -> bytes:
    try:
        return lab.get(f"{SERIAL_DIR}/{name}.log")
    except NoSuchFile:
        return b""


def counts(lab: Host, name: str, since_byte: int = 0) -> list[int]:
    """The counts a guest has printed, in the order it did."""
    return _counts(serial(lab, name, since_byte))


def boots(lab: Host, name: str, since_byte: int = 0) -> int:
    """How often a guest has booted."""
    return len(re.findall(r"B\n", serial(lab, name, since_byte)))


def mismatches(lab: Host, name: str, since_byte: int = 0) -> list[str]:
    """What a guest complained of: "!81 disk ram" or, disk call failed, "E81 disk ram"."""
    return _mismatches(serial(lab, name, since_byte))


def _counts(text: str) -> list[int]:
    # Before it may stand what a guest had printed of a line when it was ended.
    return [int(line, 16) for line in re.findall(r"(?<! )([0-9a-f]{8})\n", text)]


def _mismatches(text: str) -> list[str]:
    return re.findall(r"([!E][0-9a-f]{2} [0-9a-f]{8} [0-9a-f]{8})\n", text)


def wait_counts(lab: Host, name: str, more_than: int, *, since_byte: int = 0,
                timeout_s: float = 180.0) -> int:
    """Wait until the last count is higher; return it. A mismatch ends the wait with an error."""
    deadline = time.monotonic() + timeout_s
    while True:
        text = serial(lab, name, since_byte)
        bad = _mismatches(text)
        if bad:
            raise LabError(f"{name} found RAM and disk of different instants: {bad}")
        seen = _counts(text)
        if seen and seen[-1] > more_than:
            return seen[-1]
        if time.monotonic() > deadline:
            raise LabError(f"{name} did not count beyond {more_than}; it printed {text[-200:]!r}")
        time.sleep(0.1)


def disk_count(lab: Host, path: str, format_: str = "raw") -> int:
    """The last count on a disk: a raw file, a zvol or its snapshot's device, a qcow2 ..."""
    sectors = bootsector.COUNT_SECTORS
    if format_ == "raw":
        command = f"dd if={path} bs=512 skip=1 count={sectors} status=none | base64"
    else:
        command = (f"qemu-img dd -U -f {format_} -O raw bs=512 skip=1 count={sectors + 1} "
                   f"if={path} of=/tmp/disk-count && base64 /tmp/disk-count")
    return bootsector.count_in(base64.b64decode(lab.run(command).stdout))
