"""qemu-img: what an overlay lies on, whether it holds anything, and its merge while nobody runs it.

qemu-img takes QEMU's own image locks, so it refuses to write to an image that a machine has open.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from zvmsnap.common.errors import OverlayUnreadable, QemuImgFailed


@dataclass(frozen=True)
class Layer:
    """One image of a chain."""

    path: str
    format: str


def chain(path: str) -> tuple[Layer, ...]:
    """The image and all that it lies on, top first; also of one in use. Raises OverlayUnreadable.

    libvirt leaves the chain out of the definition of a guest that is off.
    """
    try:
        layers = _asked("info", "--force-share", "--backing-chain", path)
        found = tuple(Layer(str(layer["filename"]), str(layer["format"])) for layer in layers)
    except (QemuImgFailed, LookupError, TypeError) as error:
        raise OverlayUnreadable(f"{path}: what it lies on cannot be told: {error}") from error
    if not found:
        raise OverlayUnreadable(f"{path}: what it lies on cannot be told: no answer")
    for layer in found:
        if not os.path.isabs(layer.path):
            raise OverlayUnreadable(f"{path}: lies on {layer.path}, which is no path of a file")
    return found


def holds_nothing(overlay: str) -> bool:
    """Has nothing been written to the overlay since it was made? Raises QemuImgFailed."""
    try:
        extents = list(_asked("map", overlay))
        # Of no extent at all nothing can be told.
        return bool(extents) and all(extent["depth"] > 0 for extent in extents)
    except (LookupError, TypeError) as error:
        raise QemuImgFailed(f"qemu-img map: {overlay}: an answer of another kind") from error


def merge_down(overlay: str) -> None:
    """Write what a qcow2 overlay holds into the image below it, durably. Raises QemuImgFailed,
    OverlayUnreadable and OSError.

    The overlay stays as it is (`-d`), so this may be repeated after any interruption.
    """
    layers = chain(overlay)
    if len(layers) < 2:
        raise QemuImgFailed(f"{overlay} lies on nothing that it could be merged into")
    below = layers[1].path
    _run("commit", "-q", "-d", "-f", "qcow2", overlay)
    descriptor = os.open(below, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _asked(verb: str, *arguments: str) -> Any:
    try:
        return json.loads(_run(verb, "--output=json", "-f", "qcow2", *arguments))
    except ValueError as error:  # no JSON, or no text
        raise QemuImgFailed(f"qemu-img {verb}: an answer of another kind: {error}") from error


def _run(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
    except OSError as error:
        raise QemuImgFailed(
            f"qemu-img cannot be run: {error.strerror}; is qemu-utils there?"
        ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise QemuImgFailed(f"qemu-img {arguments[0]}: {reason.removeprefix('qemu-img: ')}")
    return done.stdout
