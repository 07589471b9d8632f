"""How the RAM of a point goes from vault to vault: of a page image, only what differs goes over.

A page image has each page at its own place. So `memory.pages` begins, where it is to be, as a clone
of the newest page image that is there of this guest, and rsync replaces in it what differs. What is
equal stays shared where the file system can clone.

| at the target                  | `memory.pages` begins as              | goes over          |
|--------------------------------|---------------------------------------|--------------------|
| a part of it, of an older run  | that: it was a clone, or one hole     | what is missing    |
| an older page image            | its clone; a copy, if it cannot clone | what differs       |
| one with other records         | a copy, with those of today           | what differs       |
| none, or cp fails              | one hole                              | what is not zero   |
| no truncate(1)                 | nothing                               | all, zeros as well |

All other files are sent whole, and go on where they were interrupted.

Why these options of rsync(1):

    --inplace         the file is changed where it lies, and not copied: blocks stay shared
    --no-whole-file   rsync compares, also where it sees a local path
    --block-size      of a page; larger, if that were more blocks than rsync should know at once
    --ignore-times    a clone may have length and time of the image
    --append-verify   for plain images. Of a page image it would keep the old pages

Not --sparse: together with --inplace it punches a hole for each row of zeros in each kilobyte
(write_sparse in rsync's fileio.c), also in blocks that are equal; ZFS writes each record anew in
which a part becomes a hole, and next to nothing would stay shared. Pages of zeros are holes in what
`memory.pages` begins as, and rsync leaves what is equal alone.
"""

from __future__ import annotations

import os
import re

from zvmsnap.common.ssh import RemoteHost
from zvmsnap.ram.page_image import FILE_BYTES_MAX, PAGE_BYTES, PAGES, REST

# rsync 3.5 needs some 45 bytes of memory for each block that the target has, where it sends, and 9
# bytes go over for each.
_BLOCKS_MAX = 8 << 20
_BLOCK_BYTES_MAX = 128 << 10  # rsync's own limit

_COPY = ("cp", "--sparse=always")
_LENGTH = re.compile(rb"[0-9]{1,15}")


def options(name: str, length_bytes: int) -> list[str]:
    """With these, rsync copies a file of RAM from vault to vault, after `begin`."""
    if name not in (PAGES, REST):
        return ["--append-verify"]
    words = ["--inplace", "--no-whole-file", "--ignore-times"]
    return words if name == REST else [*words, f"--block-size={_block_bytes(length_bytes)}"]


def begin(path: str, length_bytes: int, target: RemoteHost, base: str | None) -> None:
    """Let `memory.pages` begin as a clone of `base`, an older one on that machine, or as a hole.

    It appears by one rename, as a whole; what an interrupted run has left of it is kept. Other
    files do not begin. Raises DestinationUnreachable and RemoteFailed.
    """
    if os.path.basename(path) != PAGES:
        return
    if not target.process(["test", "-e", path]).returncode:
        return
    new = f"{path}.new"
    target.process(["rm", "-f", "--", new])
    if base and target.process([*_COPY, _sharing(target, base, new), "--", base, new]).returncode:
        target.process(["rm", "-f", "--", new])
    target.process(["truncate", "-s", str(length_bytes), "--", new])
    target.process(["mv", "-T", "--", new, path])


def _sharing(target: RemoteHost, base: str, new: str) -> str:
    """How cp makes the file: on ZFS a clone keeps its source's record size for ever."""
    target.process(["truncate", "-s", "0", "--", new])
    sizes = target.process(["stat", "-c", "%o", "--", base, new]).stdout.split()
    return "--reflink=never" if len(set(sizes)) > 1 else "--reflink=auto"


def length_bytes(path: str, remote: RemoteHost) -> int:
    """The length of a page image on that machine; 0 if it says nothing that can be.

    It is no more than a hint: what arrives is compared with its digest. Raises
    DestinationUnreachable and RemoteFailed.
    """
    said = remote.process(["stat", "-c", "%s", "--", path]).stdout.strip()
    length = int(said) if _LENGTH.fullmatch(said) else 0
    return length if length <= FILE_BYTES_MAX else 0


def _block_bytes(length_bytes: int) -> int:
    block_bytes = PAGE_BYTES
    while length_bytes > _BLOCKS_MAX * block_bytes and block_bytes < _BLOCK_BYTES_MAX:
        block_bytes *= 2
    return block_bytes
