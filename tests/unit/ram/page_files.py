"""Page images in a directory, made and read by short calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unit.ram.streams import Loaded, load
from zvmsnap.ram.page_image import PAGES, REST, PageImage
from zvmsnap.ram.put_together import write_image
from zvmsnap.ram.take_apart import TakenApart, take_apart


@contextmanager
def opened(directory: Path) -> Iterator[PageImage]:
    pages = os.open(directory / PAGES, os.O_RDONLY)
    rest = os.open(directory / REST, os.O_RDONLY)
    try:
        yield PageImage(pages, rest, "the point")
    finally:
        os.close(pages)
        os.close(rest)


def apart(image: bytes, directory: Path, base: Path | None = None) -> TakenApart:
    directory.mkdir(exist_ok=True)
    (directory / "memory").write_bytes(image)
    older = None if base is None else os.open(base / PAGES, os.O_RDONLY)
    try:
        return take_apart(directory / "memory", directory / PAGES, directory / REST, base=older)
    finally:
        if older is not None:
            os.close(older)


def together(directory: Path, taken: TakenApart, other_head: bytes | None = None) -> bytes:
    target = os.open(directory / "again", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with opened(directory) as image:
            write_image(image, target, taken.digests, head=other_head)
    finally:
        os.close(target)
    return (directory / "again").read_bytes()


def loaded(directory: Path, taken: TakenApart) -> Loaded:
    """What QEMU would load of a page image."""
    return load(together(directory, taken))
