import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.restore_case import Case, Kind, Make
from tests.fakes.restore_scene import set_scene
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import Manifest


@pytest.fixture
def make(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Make:
    def build(kind: Kind) -> Case:
        # The next of many: nothing of the last one is left.
        for directory in (config.staging_dir, config.vault_dir, config.journal_dir):
            shutil.rmtree(directory, ignore_errors=True)
        where = "volume" if kind.volume else "filesystem"
        return Case(set_scene(config, tmp_path / "pools", manifest, monkeypatch, where), kind)

    return build
