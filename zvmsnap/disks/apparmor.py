"""AppArmor (Debian, Ubuntu) and libvirt before 12.1: a guest's own profile denies it its bases.

libvirt's helper writes `deny "<base>" w` for every image below an overlay when it makes the
profile of a guest anew: when the guest is started on the overlay, and with the first pivot of
several disks. A deny beats any allow, so each later commit fails with "Permission denied". Once
these lines are removed from the guest's own file, and the profile is loaded again, the commit
works; the next pivot writes the lines again (libvirt work item 806).

The lines outlive our commit, and our start of a guest, for what is below the base itself: a guest
on a snapshot of its user's own could not be brought back from that any more.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.log import Logger
from zvmsnap.common.safe_files import write_atomic
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

PROFILES = Path("/etc/apparmor.d/libvirt")
_DENY = re.compile(r'\s*deny\s+"(?P<path>[^"]*)"\s+\w+,\s*')


def confines(uuid: str, profiles: Path = PROFILES) -> bool:
    """Has the guest a profile of its own?"""
    return (profiles / f"libvirt-{uuid}").exists()


def denied(uuid: str, images: Iterable[str], profiles: Path = PROFILES) -> set[str]:
    """Those of `images` that the guest's profile denies it to write to. Raises OSError."""
    lines = _lines(_rules(uuid, profiles))
    return {
        image
        for image in images
        if any(_denies(line, {image, os.path.realpath(image)}) for line in lines)
    }


def allow_below(guest: Guest, about: Logger, profiles: Path = PROFILES) -> None:
    """Let a guest that was just started write to what is below its disks, once its user commits.

    Without the deny the profile allows it to read only, until libvirt is asked for a commit. Not
    for a clone: what is below its disks may be its original's, too. Raises LibvirtFailed.
    """
    below = {image for disk in domain_xml.parse(guest.xml()).disks for image in disk.chain}
    try:
        if denied(guest.uuid, below, profiles):
            allow_writes(guest.uuid, below, profiles)
    except OSError as error:
        about.warning("its AppArmor profile may deny it what is below its disks: %s", error)


def allow_writes(uuid: str, bases: Iterable[str], profiles: Path = PROFILES) -> bool:
    """Let the guest write to `bases` again; True if its profile was loaded.

    It is loaded even if its file denies nothing: an earlier run may have died, or failed, after it
    had changed the file. Raises OSError.
    """
    rules = _rules(uuid, profiles)
    if not rules.exists():
        return False
    spellings = {spelling for base in bases for spelling in (base, os.path.realpath(base))}
    lines = _lines(rules)
    kept = [line for line in lines if not _denies(line, spellings)]
    if len(kept) < len(lines):
        mode = stat.S_IMODE(rules.stat().st_mode)
        write_atomic(rules, os.fsencode("\n".join(kept)))
        rules.chmod(mode)
    done = subprocess.run(
        ["apparmor_parser", "-r", str(profiles / f"libvirt-{uuid}")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        log.plain().warning("%s: not loaded again: %s", rules, done.stderr.strip())
        return False
    return True


def _rules(uuid: str, profiles: Path) -> Path:
    return profiles / f"libvirt-{uuid}.files"


def _lines(rules: Path) -> list[str]:
    try:
        data = rules.read_bytes()
    except FileNotFoundError:
        return []
    # A path may hold any byte; and of those that end a line for Python only \n does for AppArmor.
    return os.fsdecode(data).split("\n")


def _denies(line: str, paths: set[str]) -> bool:
    rule = _DENY.fullmatch(line)
    return rule is not None and rule["path"] in paths
