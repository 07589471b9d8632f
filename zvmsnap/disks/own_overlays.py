"""Overlays that zvmsnap makes itself, while the guest still runs, and is not frozen.

libvirt would make them, one after the other, while it is paused or frozen. What is left of that is
labelling them, and opening them.

| libvirt gives files to QEMU           | the overlay is given to QEMU's user by |
|---------------------------------------|----------------------------------------|
| yes                                   | libvirt, with its other labels         |
| no: `dynamic_ownership = 0`, or       | zvmsnap                                |
| `<seclabel model='dac' relabel='no'>` |                                        |
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
    """Who must own the overlays of a running guest; None if libvirt gives them to QEMU's user.

    Raises NotReached if that cannot be known, with what to do.
    """
    try:
        return security_labels.owner_for_qemu(xml)
    except ValueError as error:
        raise NotReached(
            "QEMU could not open its overlays: libvirt gives it no files (dynamic_ownership in "
            f"qemu.conf), and {error}"
        ) from error


def make(below: Mapping[str, Layer], owner: tuple[int, int] | None) -> None:
    """Make overlays, each over the image below it. Whoever releases the guest removes them.

    They are on disk when it returns: after a power cut none is in pieces. An existing file is never
    overwritten. Raises QemuImgFailed and OSError.
    """
    for overlay, image in below.items():
        new = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(overlay, new, PRIVATE_FILE)
        try:
            qemu_img.make_overlay(overlay, image)
            if owner:
                os.chown(overlay, *owner)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
