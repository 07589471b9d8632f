"""For tests in which one machine is both ends: what is its own, and what is the destination's."""

from pathlib import Path

import pytest

from zvmsnap.config.settings import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of the host that sends, whose directories all lie below `own`."""
    own = tmp_path / "own"
    return Config(vault=f"{own}/vault", journal=f"{own}/journal", locks=f"{own}/locks")
