"""A real page image, which every later version must load: QEMU 10.0's RAM, taken apart.

It lies in tests/data as tests/data/README.md says, compressed, its holes as zeros.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from pathlib import Path

import pytest

from zvmsnap.points import memory_image
from zvmsnap.points.manifest import MANIFEST
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.ram.page_image import PAGES, REST
from zvmsnap.ram.take_apart import take_apart
from zvmsnap.virt import domain_xml

DATA = Path(__file__).parents[1] / "data"
FROZEN = DATA / "page-image" / "version-1"


@pytest.fixture
def point(tmp_path: Path) -> RestorePoint:
    """The point that has it."""
    directory = tmp_path / "vault" / "small" / "run"
    directory.mkdir(parents=True)
    shutil.copy(DATA / "manifest" / "schema-2" / "memory-pages.json", directory / MANIFEST)
    for name in (PAGES, REST):
        (directory / name).write_bytes(lzma.decompress((FROZEN / f"{name}.xz").read_bytes()))
    return read_point(directory)


def test_it_is_loaded(point: RestorePoint, tmp_path: Path) -> None:
    memory = point.memory
    stored = point.directory / memory.file
    header = memory_image.check(stored, memory)
    assert (header.was_running, header.format) == (True, "raw")
    assert domain_xml.parse(memory_image.xml_of(stored, memory)).name == point.manifest.domain
    image = memory_image.materialize(stored, memory, tmp_path / "image", xml=None)
    expected = (FROZEN / "image.sha256").read_text().split()[0]
    assert hashlib.sha256(image.read_bytes()).hexdigest() == expected


def test_it_would_be_made_again(point: RestorePoint, tmp_path: Path) -> None:
    """Taken apart, what it was put together to is the same two files."""
    memory = point.memory
    stored = point.directory / memory.file
    image = memory_image.materialize(stored, memory, tmp_path / "image", xml=None)
    apart = take_apart(image, tmp_path / PAGES, tmp_path / REST)
    assert (apart.digests.pages, apart.digests.rest) == (memory.sha256, memory.rest_sha256)
    for name in (PAGES, REST):
        assert (tmp_path / name).read_bytes() == (point.directory / name).read_bytes()


@pytest.mark.parametrize("name", [PAGES, REST])
def test_the_manifest_tells_it_from_others(point: RestorePoint, name: str) -> None:
    path = point.directory / name
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(Exception, match="does not match its checksum"):
        memory_image.check(point.directory / PAGES, point.memory)
