"""Where things lie and how large the lab is."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

LAB_DIR = Path(__file__).resolve().parent.parent
CHECKOUT_DIR = LAB_DIR.parent.parent

MEMORY_MIB = 3072
ROOT_DISK_MIB = 6 * 1024
POOL_DISK_MIB = 8 * 1024
DISKS = ("root", "pool", "cheap")

BOOT_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 120.0


def cache_dir() -> Path:
    """The directory of everything the lab keeps outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base).absolute() / "zvmsnap-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path


def instance_name() -> str:
    """The instance this process works with, one per pytest worker."""
    name = os.environ.get("ZVMSNAP_LAB_INSTANCE") or "default"
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{name}-{worker}" if worker else name


def _is_source(path: Path) -> bool:
    return "__pycache__" not in path.parts


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A short hash of texts and files; a directory stands for all files in it."""
    total = hashlib.sha256()

    def add(content: bytes) -> None:
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)

    for part in parts:
        if isinstance(part, str):
            add(part.encode())
        elif isinstance(part, bytes):
            add(part)
        elif part.is_dir():
            for path in sorted(p for p in part.rglob("*") if p.is_file() and _is_source(p)):
                add(f"{path.relative_to(part)} {path.stat().st_mode & 0o111:o}".encode())
                add(path.read_bytes())
        else:
            add(part.read_bytes())
    return total.hexdigest()[:12]
