"""The Debian packages of this checkout, for tests that install them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from labkit import hostlock, settings

_BUILT = settings.CHECKOUT_DIR / "build"


@cache
def built() -> tuple[Path, Path]:
    """zvmsnap and zvmsnap-python, built now. Skips the test on a host that is no Debian."""
    if not Path("/usr/bin/apt-get").exists():
        pytest.skip("packages are built with the tools of Debian")
    if os.geteuid() != 0:
        pytest.skip("only root can install what builds packages, and a root of another Debian")
    with hostlock.exclusive("build-packages"):
        subprocess.run([settings.CHECKOUT_DIR / "tools" / "needs"], check=True)
        subprocess.run(
            [sys.executable, "-m", "tools.deb"], cwd=settings.CHECKOUT_DIR, check=True
        )
        (own,) = _BUILT.glob("zvmsnap_*.deb")
        (python,) = _BUILT.glob("zvmsnap-python_*.deb")
        return own, python
