"""Ourselves: configuration, properties, programs of the administrator, and what hooks import."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import zvmsnap
from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.config import properties, settings
from zvmsnap.config.properties import Property
from zvmsnap.config.spelling import nearest
from zvmsnap.zfs import zfs

_MODULES = {
    "libvirt": "python3-libvirt",
    "libzfs_core": "python3-pyzfs",
    "msgspec": "python3-msgspec",
    "zstandard": "python3-zstandard",
}
_PROGRAMS = {"qemu-img": "qemu-utils", "rsync": "rsync"}
_HOOKS_PYTHON = "/usr/bin/python3"
_SCRIPTS = ("pre-freeze", "post-thaw")


def files(facts: Facts) -> Iterator[Finding]:
    """May anybody but root write what root's hooks read or run?"""
    for path in settings.files():
        yield from _writable(path)
    folder = Path(facts.config.guest_scripts)
    known = {each.name for each in facts.guests or ()}
    for own in sorted(folder.iterdir()) if folder.is_dir() else ():
        if facts.guests is not None and not facts.findings and own.name not in known:
            near = nearest(own.name, known)
            mend = f"rename it: {near} may be meant" if near else "remove it"
            text = "is for a guest that libvirt does not know"
            yield yellow("config.guest-scripts", str(own), text, mend)
        for script in (own / name for name in _SCRIPTS):
            if script.exists():
                yield from _writable(script)
                if not os.access(script, os.X_OK):
                    text = "is not executable: the guest's points are of level crash"
                    yield red("config.guest-scripts", str(script), text, f"chmod +x {script}")


def _writable(path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = "others than its owner may write it, and hooks work with it as root"
        yield red("config.permissions", str(path), text, f"chmod go-w {path}")


def properties_known(facts: Facts) -> Iterator[Finding]:
    """Do all properties zvmsnap:... of guests' datasets mean something?"""
    names = {name for guest in facts.guests or () for name in guest.datasets}
    above = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
    asked = sorted((names | above) & set(facts.datasets or ()))
    try:
        found = [Property(*each) for each in zfs.user_properties(asked, properties.PREFIX)]
    except ZfsFailed:
        return
    for fault in properties.faults(found):
        text, _, mend = fault.partition("; ")
        dataset, _, said = text.partition(": ")
        yield yellow("config.property", dataset, said, mend or "zfs inherit the property")


def programs(facts: Facts) -> Iterator[Finding]:
    """Is what hooks run and import there, for the Python that runs them?"""
    for name, package in _PROGRAMS.items():
        if facts.program(name) is None:
            text = "is not installed"
            yield red("own.program", name, text, f"apt install {package}")
    if not facts.path(_HOOKS_PYTHON).exists():
        return
    # Those of a virtual environment do not serve hooks that /usr/bin/python3 runs; those of the
    # package zvmsnap-python do (hooks/needed).
    root = str(Path(zvmsnap.__file__).resolve().parents[1])
    code = (
        "import importlib.util as u, sys; "
        f"sys.path.insert(0, {root!r} + '/python%d.%d' % sys.version_info[:2]); "
        f"print(*[n for n in {sorted(_MODULES)!r} if u.find_spec(n) is None])"
    )
    said = facts.ask("python3", "-I", "-c", code)
    missing = said.split() if said else []
    if said is None:
        text = "does not run: no hook does"
        yield red("own.python", _HOOKS_PYTHON, text, "apt install --reinstall python3-minimal")
    for name in missing:
        text = f"has no {name}, which hooks from a checkout need"
        yield red("own.module", _HOOKS_PYTHON, text, f"apt install {_MODULES[name]}")
    if said is not None and not missing:
        yield green("own.modules", _HOOKS_PYTHON, "has all that the hooks import")


CHECKS = (files, properties_known, programs)
