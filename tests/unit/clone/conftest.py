from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.restore_scene import Scene, set_scene
from zvmsnap.clone import own_places
from zvmsnap.config.settings import Config
from zvmsnap.points import compatibility
from zvmsnap.points.manifest import Manifest


@pytest.fixture
def scene(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setattr(own_places, "CLONES", tmp_path / "clones")
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
    return set_scene(config, tmp_path / "pools", manifest, monkeypatch)
