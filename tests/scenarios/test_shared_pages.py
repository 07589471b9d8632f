"""Page images of one guest, each begun as a clone of the one before, are each whole by itself.

In whatever order points or their RAM go, and whatever is published meanwhile, the rest can be
loaded. Cloning is played by a copy: what real file systems do with shared blocks, the lab sees.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.fixtures import UUID
from tests.unit.ram.streams import PAGE_BYTES, Image
from zvmsnap.common import log
from zvmsnap.config.settings import Config
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import DOMAIN_XML, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.ram import take_apart
from zvmsnap.retention import old_memory

Build = Callable[..., Manifest]
PAGES = 64


@pytest.fixture
def clones(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A file system that clones; the files that were cloned."""
    cloned: list[str] = []

    def clone(source: int, target: int) -> bool:
        cloned.append(os.readlink(f"/proc/self/fd/{source}"))
        os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
        return True

    monkeypatch.setattr(take_apart, "clone", clone)
    return cloned


class Vault:
    """Points of one guest whose RAM changes; `images` has what libvirt wrote of each, by name."""

    def __init__(self, config: Config, build: Build, dice: random.Random) -> None:
        self.images: dict[str, bytes] = {}
        self._config = config
        self._build = build
        self._dice = dice
        self._ram: dict[int, bytes | None] = dict.fromkeys(range(PAGES))
        self._count = 0

    def publish(self) -> None:
        """A few of its pages have changed since the last point; some are zeros again."""
        for number in self._dice.sample(range(PAGES), 9):
            self._ram[number] = self._dice.choice((None, self._dice.randbytes(PAGE_BYTES)))
        self._count += 1
        capture = f"{UUID}.{self._count:08}"
        manifest = self._build(run=f"r{self._count}", capture=capture)
        directory = vault.incoming(self._config.vault_dir, "web", capture)
        (directory / DOMAIN_XML).write_text("<domain/>")
        dump = directory.with_name("dump")
        dump.write_bytes(self._image())
        about = log.about("web", "tank/web")
        memory = RamStore(directory, "web", UUID, True, None, about).store(dump, "raw")
        assert memory.is_paged
        point = vault.publish(directory, msgspec.structs.replace(manifest, memory=memory))
        self.images[point.name] = dump.read_bytes()
        dump.unlink()

    def _image(self) -> bytes:
        image = Image({"pc.ram": PAGES * PAGE_BYTES})
        image.begin()
        for number, content in self._ram.items():
            image.page("pc.ram", number, content)
        image.end()
        image.begin(3)
        image.end()
        return image.image()

    def prune(self) -> None:
        """Any point goes, or its RAM."""
        name = self._dice.choice(sorted(self.images))
        (point,) = [each for each in self.points() if each.name == name]
        del self.images[name]
        if self._dice.random() < 0.5:
            vault.remove(point)
        else:
            assert old_memory.remove(self._config, [point]) == [point]

    def points(self) -> list[RestorePoint]:
        points, damaged = vault.all_in(self._config.vault_dir)
        assert not damaged
        return points

    def assert_whole(self, target: Path) -> None:
        """Each that has RAM has its own, to the byte."""
        with_memory = [each for each in self.points() if each.manifest.memory]
        assert {each.name for each in with_memory} == self.images.keys()
        for point in with_memory:
            memory = point.memory
            stored = point.directory / memory.file
            memory_image.check(stored, memory)
            memory_image.materialize(stored, memory, target, xml=None)
            assert target.read_bytes() == self.images[point.name]
            target.unlink()


@pytest.mark.parametrize("seed", range(12))
def test_points_go_in_any_order(
    config: Config, manifest: Build, tmp_path: Path, clones: list[str], seed: int
) -> None:
    dice = random.Random(seed)
    known = Vault(config, manifest, dice)
    for _ in range(4):
        known.publish()
    assert len(clones) == 3
    for _ in range(8):
        if known.images and dice.random() < 0.7:
            known.prune()
        else:
            known.publish()
        known.assert_whole(tmp_path / "again")
    while known.images:
        known.prune()
        known.assert_whole(tmp_path / "again")
    assert not list(config.vault_dir.rglob("memory.*"))
