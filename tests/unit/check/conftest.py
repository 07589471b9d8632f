"""A host on which nothing is found."""

from pathlib import Path

import pytest

from tests.fakes.check_scene import CheckedHost
from tests.fakes.host import FakeHost


@pytest.fixture
def checked(tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> CheckedHost:
    """The host."""
    return CheckedHost(tmp_path, host, monkeypatch)
