"""A host without sanoid.conf and config.toml, with one guest."""

from pathlib import Path

import pytest

from tests.fakes.check_scene import CheckedHost
from tests.fakes.host import FakeHost
from zvmsnap.config import settings


@pytest.fixture
def bare(tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> CheckedHost:
    """The host."""
    made = CheckedHost(tmp_path, host, monkeypatch)
    made.sanoid_conf.unlink()
    made.config_file.unlink()
    monkeypatch.delenv("ZVMSNAP_CONFIG")
    monkeypatch.setattr(settings, "DEFAULT_PATH", made.config_file)
    for own in made.properties.values():
        own.pop("zvmsnap:keep-memory")
    return made
