import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.backup_scene import Scene
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import Manifest


@pytest.fixture
def scene(
    tmp_path: Path,
    config: Config,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    if not shutil.which("qemu-img"):
        pytest.skip("no qemu-img here: qemu-utils is not installed")
    return Scene(tmp_path, config, manifest, monkeypatch)
