"""The Python packages of others: where zvmsnap's own copies are, and one line if one is missing.

The Debian package zvmsnap-python has copies for distributions that lack some, or have them too old.
They are in a directory for each version of Python, beside the package zvmsnap: an upgrade of the
distribution to another Python leaves them behind, and that distribution's own are used.

It loads nothing, as hooks are started often (hooks/start).
"""

from __future__ import annotations

import os
import sys

# What Debian calls the package of each module.
_DEBIAN = {
    "libvirt": "python3-libvirt",
    "libvirt_qemu": "python3-libvirt",
    "libzfs_core": "python3-pyzfs",
    "msgspec": "python3-msgspec",
    "typer": "python3-typer",
    "zstandard": "python3-zstandard",
}
_OLDEST = (3, 11)
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def prefer_own(root: str = _ROOT) -> None:
    """Import from zvmsnap-python first, if it is installed and has packages for this Python."""
    own = f"{root}/python{sys.version_info.major}.{sys.version_info.minor}"
    if os.path.isdir(own) and own not in sys.path:
        sys.path.insert(0, own)


def line(error: ImportError) -> str:
    """What is missing, for which Python, and what to do: for an import that failed."""
    if sys.version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return f"Python {oldest} or later is needed, and {sys.executable} is {_version()}"
    module = (error.name or "").partition(".")[0]
    debian = _DEBIAN.get(module)
    if debian is None:
        return f"a Python package is not as it should be: {error}: install zvmsnap anew"
    wrong = "is missing" if isinstance(error, ModuleNotFoundError) else f"cannot be used ({error})"
    return (
        f"the Python package {module} {wrong} for {sys.executable}, Python {_version()}: install "
        f"{debian}, or zvmsnap-python where the distribution has none; see docs/how-to/install.md"
    )


def tell(error: ImportError) -> None:
    """Say that line, when nothing else may be imported."""
    said = " ".join(line(error).split())
    try:
        from zvmsnap.common import log

        log.tell(said)
    except Exception:  # of a Python that is too old
        sys.stderr.write(f"zvmsnap: error: {said}\n")


def _version() -> str:
    return ".".join(map(str, sys.version_info[:3]))
