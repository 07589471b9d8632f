"""Runs in the lab: what zvmsnap does with RAM images, timed without the start of Python.

page_images.py store IMAGE MODEL VAULT: a point in VAULT, as publishing makes one of libvirt's
image; MODEL is a point that was taken, of which it has all but the RAM.
page_images.py rebuild POINT TARGET: libvirt's image again, as restore makes it.
page_images.py changed OLD NEW: how much of a `memory.pages` is not as in an older one.
page_images.py natively IMAGE POINT TARGET: a page image in a new POINT without a manifest, and the
image again in TARGET. Without a lab: what is read comes from the disk.

Each prints a line of JSON. Seconds are by the clock, and of the CPU, user's and system's; memory is
the most that the process has had.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import memory_image
from zvmsnap.points.manifest import MANIFEST, SMALL, Memory
from zvmsnap.points.point import read_point

# What RAM is counted in: a page, and the records that ZFS could have.
SIZES_KIB = (4, 16, 64, 128)
_CHUNK_BYTES = 1 << 20
_UUID = "00000000-0000-0000-0000-000000000016"


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Do it; how long that takes."""
    begun_s, used_s = time.monotonic(), time.process_time()
    work()
    took_s, cpu_s = time.monotonic() - begun_s, time.process_time() - used_s
    return {"took_s": took_s, "cpu_s": cpu_s, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """Of this program alone: getrusage(2) also counts who has started it."""
    fields = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def store(image: str, model: str, vault: str) -> dict[str, float]:
    """Store the image as a page image, with the guest's newest point in the vault as its base."""
    manifest = read_point(Path(model)).manifest
    point = Path(vault, Path(model).parent.name, Path(model).name)
    point.mkdir(parents=True, mode=0o700)
    stored: list[Memory] = []
    seconds = timed(lambda: stored.append(_stored(image, point, manifest.domain, manifest.uuid)))
    for name in SMALL:
        if Path(model, name).exists():
            shutil.copy(Path(model, name), point)
    written = msgspec.structs.replace(manifest, memory=stored[0])
    (point / MANIFEST).write_bytes(json_file.encoded(written))
    return seconds


def _stored(image: str, point: Path, domain: str, uuid: str) -> Memory:
    ram = RamStore(point, domain, uuid, True, None, log.about(domain, "bench"))
    memory = ram.store(Path(image), "raw")
    if not memory.is_paged:
        sys.exit(f"{image}: was not taken apart: {memory.why_plain}")
    return memory


def rebuild(point: str, target: str) -> dict[str, float]:
    """Put it together into a new file."""
    memory = read_point(Path(point)).manifest.memory
    if memory is None:
        sys.exit(f"{point}: has no RAM image")
    pages = Path(point, memory.file)
    return timed(lambda: memory_image.materialize(pages, memory, Path(target), xml=None))


def natively(image: str, point: str, target: str) -> dict[str, dict[str, float]]:
    """Both, one after the other; nothing of the page image is in memory in between."""
    Path(point).mkdir(parents=True, mode=0o700)
    stored: list[Memory] = []
    apart = timed(lambda: stored.append(_stored(image, Path(point), "made-up", _UUID)))
    (memory,) = stored
    for name in memory.files:
        with Path(point, name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages = Path(point, memory.file)
    rebuilt = timed(lambda: memory_image.materialize(pages, memory, Path(target), xml=None))
    return {"apart": apart, "rebuilt": rebuilt}


def changed(old: str, new: str) -> dict[str, dict[str, float]]:
    """MiB that are not zeros, and MiB that are not as in the old file, in pieces of each size."""
    counts = {size_kib: [0, 0] for size_kib in SIZES_KIB}
    with open(old, "rb") as before, open(new, "rb") as now:
        while chunk := now.read(_CHUNK_BYTES):
            base = before.read(_CHUNK_BYTES)
            for size_kib, count in counts.items():
                _count(base, chunk, size_kib << 10, count)
    return {
        f"{size_kib} KiB": {
            "used_mib": used * size_kib / 1024,
            "changed_mib": differ * size_kib / 1024,
        }
        for size_kib, (used, differ) in counts.items()
    }


def _count(base: bytes, chunk: bytes, size_bytes: int, count: list[int]) -> None:
    zeros = bytes(size_bytes)
    for at in range(0, len(chunk), size_bytes):
        piece = chunk[at : at + size_bytes]
        count[0] += piece != zeros
        count[1] += piece != base[at : at + size_bytes]


if __name__ == "__main__":
    os.umask(0o077)
    ways: list[Callable[..., object]] = [store, rebuild, natively, changed]
    do = {way.__name__: way for way in ways}
    print(json.dumps(do[sys.argv[1]](*sys.argv[2:])))
