"""Writes a qcow2 image, on top of another, of those ranges of a raw disk that may have changed.

In one pass: data first, then the tables that say where it is. As of QEMU's docs/interop/qcow2.rst,
version 3, clusters of 64 KiB. What is zeros takes a bit in a table, and no room.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from zvmsnap.bulk import writing
from zvmsnap.common.safe_files import created

CLUSTER_BYTES = 64 << 10
_BITS = 16
_ENTRIES = CLUSTER_BYTES // 8  # of a table
_REFCOUNTS = CLUSTER_BYTES // 2  # of a block of them, of 16 bits each
_COPIED = 1 << 63
_IS_ZERO = 1
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA
_AT_ONCE = 32
_ZEROS = bytes(CLUSTER_BYTES)


def clusters_of(ranges: Iterable[tuple[int, int]], disk_bytes: int) -> Iterator[int]:
    """The numbers of the clusters that these ranges touch, each once and in order."""
    last = -(-disk_bytes // CLUSTER_BYTES)
    done = 0
    for begin, end in sorted(ranges):
        first = max(done, begin // CLUSTER_BYTES)
        done = max(done, min(last, -(-end // CLUSTER_BYTES)))
        yield from range(first, done)


def write(
    source: int, disk_bytes: int, ranges: Iterable[tuple[int, int]], target: Path, backing: str
) -> int:
    """Write it to the new file `target`; returns how many clusters it holds.

    `source` is the raw disk, open for reading, `backing` how the header names the image below.
    Durable when the caller has synced it. Raises OSError.
    """
    with created(target) as file:
        tables: dict[int, array[int]] = {}
        at = CLUSTER_BYTES  # the first cluster is the header's
        count = 0
        for number in clusters_of(ranges, disk_bytes):
            data = _read(source, number * CLUSTER_BYTES, disk_bytes)
            entry = _IS_ZERO
            if data != _ZEROS:
                writing.write_at(file, data, at)
                entry = at | _COPIED
                at += CLUSTER_BYTES
            table = tables.setdefault(number // _ENTRIES, array("Q", bytes(CLUSTER_BYTES)))
            table[number % _ENTRIES] = entry
            count += 1
        _write_tables(file, at, disk_bytes, tables, backing)
    return count


def _read(source: int, at: int, disk_bytes: int) -> bytes:
    wanted = min(CLUSTER_BYTES, disk_bytes - at)
    data = os.pread(source, wanted, at)
    if len(data) != wanted:
        raise OSError(f"only {len(data)} bytes of {wanted} could be read at {at}")
    return data.ljust(CLUSTER_BYTES, b"\0")


def _write_tables(
    file: int, at: int, disk_bytes: int, tables: dict[int, array[int]], backing: str
) -> None:
    first = array("Q", bytes(8 * -(-disk_bytes // (CLUSTER_BYTES * _ENTRIES)) or 8))
    for number, table in sorted(tables.items()):
        first[number] = at | _COPIED
        at = _put(file, at, table)
    first_at = at
    at = _put(file, at, first)
    table_at, table_clusters = _write_refcounts(file, at)
    name = backing.encode()
    extension = struct.pack(">II8sII", _BACKING_FORMAT, 5, b"qcow2", 0, 0)
    name_at = _HEADER.size + 8 + len(extension)
    header = _HEADER.pack(
        *(_MAGIC, 3, name_at, len(name), _BITS, disk_bytes, 0, len(first), first_at),
        *(table_at, table_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size + 8),
    )
    writing.write_at(file, header + bytes(8) + extension + name, 0)


def _write_refcounts(file: int, at: int) -> tuple[int, int]:
    """Each cluster is used once, those of the counts too."""
    used = at // CLUSTER_BYTES
    blocks = tables = 1
    while True:
        total = used + blocks + tables
        needed_blocks = -(-total // _REFCOUNTS)
        needed = needed_blocks, -(-needed_blocks // _ENTRIES)
        if needed == (blocks, tables):
            break
        blocks, tables = needed
    places = array("Q", (at + number * CLUSTER_BYTES for number in range(blocks)))
    counts = array("H", [1]) * total
    counts.byteswap()
    data = counts.tobytes().ljust(blocks * CLUSTER_BYTES, b"\0")
    writing.write_at(file, data, at)
    table_at = at + blocks * CLUSTER_BYTES
    _put(file, table_at, places)
    return table_at, tables


def _put(file: int, at: int, table: array[int]) -> int:
    """Write a table, in the image's byte order; returns where the next cluster begins."""
    swapped = array("Q", table)
    swapped.byteswap()
    data = swapped.tobytes()
    length = -(-len(data) // CLUSTER_BYTES) * CLUSTER_BYTES
    writing.write_at(file, data.ljust(length, b"\0"), at)
    return at + length
