"""Overlays that zvmsnap makes itself: libvirt would make files that QEMU is not allowed to open.

So it is with `dynamic_ownership = 0` in qemu.conf, and <seclabel model='dac' relabel='no'>.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from zvmsnap.common.errors import NotReached
from zvmsnap.common.safe_files import PRIVATE_FILE
from zvmsnap.disks import qemu_img
from zvmsnap.disks.qemu_img import Layer
from zvmsnap.virt import security_labels


def owner_for(xml: str) -> tuple[int, int] | None:
    """Who must own the overlays of a running guest; None if libvirt makes them.

    Raises NotReached if that cannot be known, with what to do.
    """
    try:
        return security_labels.owner_for_qemu(xml)
    except ValueError as error:
        raise NotReached(
            "QEMU could not open its overlays: libvirt gives it no files (dynamic_ownership in "
            f"qemu.conf), and {error}"
        ) from error


def make(below: Mapping[str, Layer], owner: tuple[int, int]) -> None:
    """Make overlays, each over the image below it. Whoever releases the guest removes them.

    Raises QemuImgFailed and OSError.
    """
    for overlay, image in below.items():
        qemu_img.make_overlay(overlay, image)
        os.chown(overlay, *owner)
        os.chmod(overlay, PRIVATE_FILE)
