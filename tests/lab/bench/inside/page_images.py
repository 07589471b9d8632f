"""Runs in the lab: what zvmsnap does with RAM images, timed without the start of Python.

page_images.py store IMAGE MODEL VAULT: a point in VAULT, as publishing makes one of libvirt's
image; MODEL is a point that was taken, of which it has all but the RAM.
page_images.py rebuild POINT TARGET: libvirt's image again, as restore makes it.
page_images.py changed OLD NEW: how much of a `memory.pages` is not as in an older one.

Each prints a line of JSON. Seconds are by the clock, and of the CPU, user's and system's.
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
from zvmsnap.points.manifest import MANIFEST, SMALL
from zvmsnap.points.point import read_point

# What RAM is counted in: a page, and the records that ZFS could have.
SIZES_KIB = (4, 16, 64, 128)
_CHUNK_BYTES = 1 << 20


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Do it; how long that takes."""
    begun_s, used_s = time.monotonic(), time.process_time()
    work()
    return {"took_s": time.monotonic() - begun_s, "cpu_s": time.process_time() - used_s}


def store(image: str, model: str, vault: str) -> dict[str, float]:
    """Store the image as a page image, with the guest's newest point in the vault as its base."""
    manifest = read_point(Path(model)).manifest
    point = Path(vault, Path(model).parent.name, Path(model).name)
    point.mkdir(parents=True, mode=0o700)
    about = log.about(manifest.domain, "bench")
    ram = RamStore(point, manifest.domain, manifest.uuid, True, None, about)
    stored = []
    seconds = timed(lambda: stored.append(ram.store(Path(image), "raw")))
    if not stored[0].is_paged:
        sys.exit(f"{image}: was not taken apart: {stored[0].why_plain}")
    for name in SMALL:
        if Path(model, name).exists():
            shutil.copy(Path(model, name), point)
    written = msgspec.structs.replace(manifest, memory=stored[0])
    (point / MANIFEST).write_bytes(json_file.encoded(written))
    return seconds


def rebuild(point: str, target: str) -> dict[str, float]:
    """Put it together into a new file."""
    memory = read_point(Path(point)).manifest.memory
    if memory is None:
        sys.exit(f"{point}: has no RAM image")
    pages = Path(point, memory.file)
    return timed(lambda: memory_image.materialize(pages, memory, Path(target), xml=None))


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
    do: dict[str, Callable[..., object]] = {"store": store, "rebuild": rebuild, "changed": changed}
    print(json.dumps(do[sys.argv[1]](*sys.argv[2:])))
