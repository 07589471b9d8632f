"""A host, a point of its guest on a filesystem or a volume, and what is noted of a work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.restore_scene import Scene
from zvmsnap.clone import own_places
from zvmsnap.point_disks.opened import PointDisks, opened
from zvmsnap.points.point import RestorePoint

KEY = "0123abcd" * 4


class Case:
    """`notes` are the names of datasets that were noted, and whether any of them existed."""

    def __init__(self, scene: Scene, clones: Path) -> None:
        self.scene = scene
        self.world = scene.world
        self.clones = clones
        self.point: RestorePoint = scene.point()
        self.notes: list[tuple[tuple[str, ...], bool]] = []

    def note(self, names: tuple[str, ...]) -> None:
        self.notes.append((names, any(name in self.world.pool for name in names)))

    @contextmanager
    def opened(self) -> Iterator[PointDisks]:
        with opened(self.scene.config, self.point, KEY, self.note) as disks:
            yield disks


@pytest.fixture
def make(
    host_with_points: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Case]:
    """Makes a case of a `filesystem` or a `volume`."""
    monkeypatch.setattr(own_places, "CLONES", tmp_path / "clones")

    def build(kind: str = "filesystem") -> Case:
        scene = host_with_points(kind)
        scene.host.install(monkeypatch)
        return Case(scene, tmp_path / "clones")

    return build
