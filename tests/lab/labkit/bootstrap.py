"""The tree of packages: a Debian with kernel, ZFS and libvirt. Slow, so it is kept."""

import os
import shutil
from pathlib import Path

from labkit import command, hostlock, progress, settings
from labkit.errors import LabError

PACKAGES = settings.LAB_DIR / "image" / "packages.txt"
SUITE = "trixie"
OPTIONS = (
    "--mode=root",
    "--variant=minbase",
    "--components=main,contrib",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
TIMEOUT_S = 3600.0


def packages() -> list[str]:
    """What is installed."""
    lines = PACKAGES.read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def key() -> str:
    """Changes when the tree would."""
    return settings.digest([SUITE, *OPTIONS, *packages()])


def tree() -> Path:
    """The tree of packages, built now if this list of packages never was."""
    path = settings.cache_dir() / f"tree-{key()}"
    if path.exists():
        return path
    if os.geteuid() != 0:
        raise LabError("only root can build the lab's image")
    with hostlock.exclusive("build-tree"):
        if not path.exists():
            _build(path)
    for old in settings.cache_dir().glob("tree-*"):
        if old != path and hostlock.remove_unused(old):
            progress.say(f"removed {old.name}, of an older list of packages")
    return path


def _build(path: Path) -> None:
    unfinished = path.with_name(f".unfinished-{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    log = path.with_name("bootstrap.log")
    log.unlink(missing_ok=True)
    with progress.step(f"installing Debian {SUITE} with ZFS and libvirt (4 to 10 minutes; {log})"):
        command.run(
            ["mmdebstrap", *OPTIONS, f"--include={','.join(packages())}", SUITE, unfinished],
            timeout_s=TIMEOUT_S, log=log)
    unfinished.rename(path)
