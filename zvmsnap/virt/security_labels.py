"""The owners of images: as libvirt notes them, and the user as whom QEMU runs.

libvirt keeps the owner of an image that it lends to QEMU in extended attributes, with a count of
users. A snapshot, and so a clone or a rollback, has the same notes: a guest of another user or
label is refused as "already in use", and the file is never given back to its owner.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress

from zvmsnap.virt import qemu_conf

_PREFIX = "trusted.libvirt.security."
_OWNER = re.compile(rb"\+(\d+):\+(\d+)\0?")


def give_back(path: int) -> None:
    """Give an open file to the owner that libvirt has noted, and forget its notes. Raises OSError.

    Open, as the file may be a guest's owner's, who may put another in its place meanwhile.
    """
    noted = [name for name in os.listxattr(path) if name.startswith(_PREFIX)]
    if not noted:
        return
    with suppress(KeyError, OverflowError):
        owner = {name: os.getxattr(path, name) for name in noted}[f"{_PREFIX}dac"]
        if ids := _OWNER.fullmatch(owner):
            os.chown(path, int(ids[1]), int(ids[2]))
    for name in noted:
        os.removexattr(path, name)


def owner_for_qemu(xml: str) -> tuple[int, int] | None:
    """User and group to which new files of a running guest must be given; None if libvirt does it.

    libvirt does not with `dynamic_ownership = 0`, and where the definition says so
    (<seclabel model='dac' relabel='no'>). Raises ValueError if the definition does not tell them.
    """
    label = ET.fromstring(xml).find("seclabel[@model='dac']")
    keeps_owners = label is not None and label.get("relabel") == "no"
    if qemu_conf.gives_files_to_qemu() and not keeps_owners:
        return None
    user, _, group = (label.findtext("label", "") if label is not None else "").partition(":")
    if not user or not group:
        raise ValueError("its definition does not say as which user QEMU runs")
    return _number(user, _uid), _number(group, _gid)


def _number(name: str, of_name: Callable[[str], int]) -> int:
    # As libvirt reads it: a number may have a plus sign before it, so that it is no name.
    if name.removeprefix("+").isdecimal():
        return int(name)
    try:
        return of_name(name)
    except KeyError as error:
        raise ValueError(f"its definition names {name}, whom this host does not know") from error


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid
