"""qemu-img: making overlays, merging them, what images hold and what is below them.

qemu-img takes QEMU's own image locks, so it refuses to write to an image that a machine has open.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from enum import Enum
from typing import Any

from zvmsnap.common import foreign
from zvmsnap.common.errors import GivenUp, OverlayUnreadable, QemuImgFailed
from zvmsnap.common.process import run_program


@dataclass(frozen=True)
class Layer:
    """One image of a chain."""

    path: str
    format: str


@dataclass(frozen=True)
class Header:
    """What an image says of the files that it needs; "" is none.

    `backing` is as QEMU would open it, `data_file` as it is written there.
    """

    backing: str
    backing_format: str
    data_file: str


@dataclass(frozen=True)
class Qcow2:
    """A qcow2 image: the version of its layout, such as 1.1, and how long the disk is."""

    version: str
    disk_bytes: int


class Soundness(Enum):
    """Do the tables of a qcow2 image account for what is in the file? By qemu-img's exit code."""

    SOUND = 0
    CORRUPT = 2  # tables contradict each other, or are cut off
    LEAKS = 3  # clusters that no table names: after a crash while they were allocated


def chain(path: str) -> tuple[Layer, ...]:
    """The image and all images below it, top first; also of one in use. Raises OverlayUnreadable.

    libvirt leaves the chain out of the definition of a guest that is off.
    """
    try:
        answer = _query("info", "--force-share", "--backing-chain", path)
        layers = tuple(Layer(str(layer["filename"]), str(layer["format"])) for layer in answer)
    except (QemuImgFailed, LookupError, TypeError) as error:
        raise OverlayUnreadable(f"{path}: its backing files cannot be read: {error}") from error
    if not layers:
        raise OverlayUnreadable(f"{path}: its backing files cannot be read: no answer")
    for layer in layers:
        if not os.path.isabs(layer.path):
            raise OverlayUnreadable(f"{path}: is on {layer.path}, which is not the path of a file")
    return layers


def header(path: str, image_format: str) -> Header:
    """Read an image's header; the files that it names are not opened. Raises QemuImgFailed."""
    try:
        said = json.loads(_run("info", "--output=json", "--force-share", "-f", image_format, path))
        specific = said.get("format-specific", {}).get("data", {})
        backing = said.get("full-backing-filename", said.get("backing-filename", ""))
        backing_format = said.get("backing-filename-format", "")
        return Header(str(backing), str(backing_format), str(specific.get("data-file", "")))
    except (ValueError, RecursionError, AttributeError) as error:
        raise QemuImgFailed(f"qemu-img info: {path}: an answer of another kind") from error


def set_backing(path: str, image_format: str, backing: str, backing_format: str) -> None:
    """Let an image's header name another backing file with the same content.

    Raises QemuImgFailed.
    """
    below = ["-b", backing, *(["-F", backing_format] if backing_format else [])]
    _run("rebase", "-q", "-u", "-f", image_format, *below, path)


def set_data_file(path: str, data_file: str) -> None:
    """Let the header of a qcow2 image name another data file with the same content.

    The data file that it names is not opened. Raises QemuImgFailed.
    """
    option = data_file.replace(",", ",,")
    image = f"driver=qcow2,file.filename={path.replace(',', ',,')},data-file.filename={option}"
    _run("amend", "-q", "-o", f"data_file={option}", "--image-opts", image)


def holds_nothing(overlay: str) -> bool:
    """Has nothing been written to the overlay since it was made? Raises QemuImgFailed."""
    try:
        extents = list(_query("map", overlay))
        # Without any extent nothing is proven.
        return bool(extents) and all(extent["depth"] > 0 for extent in extents)
    except (LookupError, TypeError) as error:
        raise QemuImgFailed(f"qemu-img map: {overlay}: an answer of another kind") from error


def bitmaps(image: str) -> frozenset[str]:
    """The persistent bitmaps of a qcow2 image that say truly what has changed.

    One that is in use does not: it was not written when the image was last used. Of an image that
    a guest has open all are. Raises QemuImgFailed.
    """
    try:
        told = _query("info", "--force-share", image)["format-specific"]["data"].get("bitmaps", ())
        return frozenset(str(each["name"]) for each in told if "in-use" not in each["flags"])
    except (LookupError, TypeError, AttributeError) as error:
        raise QemuImgFailed(f"qemu-img info: {image}: an answer of another kind") from error


def qcow2(image: str) -> Qcow2:
    """What a qcow2 image is, which may be in use. Raises QemuImgFailed."""
    try:
        told = _query("info", "--force-share", image)
        version = told["format-specific"]["data"]["compat"]
        return Qcow2(str(version), int(told["virtual-size"]))
    except (LookupError, TypeError, ValueError) as error:
        raise QemuImgFailed(f"qemu-img info: {image}: an answer of another kind") from error


def make_overlay(overlay: str, below: Layer) -> None:
    """Make a qcow2 overlay over an image, which may be in use. Raises QemuImgFailed."""
    info = _run("info", "--output=json", "--force-share", "-f", below.format, below.path)
    try:
        size_bytes = int(json.loads(info)["virtual-size"])
    except (ValueError, LookupError, TypeError) as error:
        raise QemuImgFailed(f"qemu-img info: {below.path}: an answer of another kind") from error
    # `-u`: without opening the image below, which its guest has locked.
    backing = ["-b", below.path, "-F", below.format]
    _run("create", "-q", "-u", "-f", "qcow2", *backing, overlay, str(size_bytes))


def convert(source: str, target: str, *, compress: bool = False, on_top_of: str = "") -> None:
    """Write the content of an image into a new qcow2 image; `on_top_of`: as one on another image.

    Of that one, which must hold what is below `source`, nothing is copied. Images may be named as
    QEMU's json:. It is not durable. Raises QemuImgFailed.
    """
    options = ["-c", "-o", "compression_type=zstd"] if compress else []
    below = ["-B", on_top_of, "-F", "qcow2"] if on_top_of else []
    _run("convert", "-q", "-O", "qcow2", *options, *below, source, target)


def write_raw(source: str, target: str, *, is_device: bool) -> None:
    """Write the content of an image into a new raw file, or a device that holds zeros alone.

    What is zeros is left out. Not durable. Raises QemuImgFailed.
    """
    there = ["-n", "--target-is-zero", "-O", "host_device"] if is_device else ["-O", "raw"]
    _run("convert", "-q", *there, source, target)


def make_difference(source: str, driver: str, below: str, target: str) -> None:
    """Make a qcow2 image on top of another, of what `source` has other than that.

    `driver` is the one by which `source` is read. `below` is how the header of `target` names the
    other one: may be relative to it. All of both is read. Not durable. Raises QemuImgFailed.
    """
    _run("create", "-q", "-f", "qcow2", "-b", source, "-F", driver, target)
    _run("rebase", "-q", "-t", "unsafe", "-f", "qcow2", "-F", "qcow2", "-b", below, target)


def make_link(target: str, named: str, disk_bytes: int) -> None:
    """Make an empty qcow2 image on top of another, which is not opened. Raises QemuImgFailed."""
    below = ["-u", "-F", "qcow2", "-b", named]
    _run("create", "-q", "-f", "qcow2", *below, target, str(disk_bytes))


def disk_bytes(image: str) -> int:
    """How long the disk is that an image holds. Raises QemuImgFailed."""
    try:
        return int(
            json.loads(_run("info", "--output=json", "--force-share", image))["virtual-size"]
        )
    except (ValueError, LookupError, TypeError) as error:
        raise QemuImgFailed("qemu-img info: an answer of another kind") from error


def needed_bytes(source: str) -> int:
    """How long a qcow2 image with the content of another, maybe in use, would be.

    Raises QemuImgFailed.
    """
    try:
        said = _run("measure", "--output=json", "--force-share", "-O", "qcow2", source)
        return int(json.loads(said)["required"])
    except (ValueError, LookupError, TypeError) as error:
        raise QemuImgFailed("qemu-img measure: an answer of another kind") from error


def make_view(overlay: str, below: str) -> None:
    """Make a qcow2 overlay over `below`, QEMU's name of an image that nobody writes to.

    Nothing is left to the headers of images if `below` is a `json:` name of all nodes. Raises
    QemuImgFailed if it cannot be opened.
    """
    below_format = json.loads(below.removeprefix("json:"))["driver"]
    _run("create", "-q", "-f", "qcow2", "-F", below_format, "-b", below, overlay)


def check(overlay: str) -> Soundness:
    """Do its tables account for all that is in it? Raises QemuImgFailed."""
    done = _call("check", "-q", "-f", "qcow2", overlay)
    try:
        return Soundness(done.returncode)
    except ValueError:
        raise _failed("check", done) from None


def merge_down(overlay: str) -> None:
    """Write the data of a qcow2 overlay into the image below it, durably.

    The overlay stays as it is (`-d`), so this may be repeated after any interruption. One whose
    tables are torn is refused: qemu-img would merge what is left of them, and call it done. Raises
    QemuImgFailed, OverlayUnreadable and OSError.
    """
    layers = chain(overlay)
    if len(layers) < 2:
        raise QemuImgFailed(f"{overlay} has no image below it that it could be merged into")
    below = layers[1].path
    soundness = check(overlay)
    if soundness is Soundness.CORRUPT or (soundness is Soundness.LEAKS and holds_nothing(overlay)):
        raise QemuImgFailed(
            f"{overlay}: its tables are torn, so not all that its guest has written can be merged: "
            f"kept. qemu-img check {overlay} tells more"
        )
    _run("commit", "-q", "-d", "-f", "qcow2", overlay)
    descriptor = os.open(below, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def detach(overlay: str) -> None:
    """Copy into a qcow2 overlay what it has from the images below it; it is on none after that.

    Its header changes last, so this may be repeated after any interruption. Raises QemuImgFailed
    and OSError.
    """
    if check(overlay) is Soundness.CORRUPT:
        raise QemuImgFailed(f"{overlay}: its tables are torn: qemu-img check {overlay} tells more")
    _run("rebase", "-q", "-f", "qcow2", "-b", "", overlay)
    descriptor = os.open(overlay, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _query(verb: str, *arguments: str) -> Any:
    try:
        return json.loads(_run(verb, "--output=json", "-f", "qcow2", *arguments))
    except (ValueError, RecursionError) as error:  # no JSON, no text, or too deep
        raise QemuImgFailed(f"qemu-img {verb}: an answer of another kind: {error}") from error


def _run(*arguments: str) -> str:
    done = _call(*arguments)
    if done.returncode != 0:
        raise _failed(arguments[0], done)
    return done.stdout


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        done = run_program(["qemu-img", *arguments])
    except GivenUp as error:
        raise QemuImgFailed(str(error)) from error
    except OSError as error:
        raise QemuImgFailed(
            f"qemu-img cannot be run: {error.strerror}; is qemu-utils installed?"
        ) from error
    return subprocess.CompletedProcess(
        done.args, done.returncode, _text(done.stdout), _text(done.stderr)
    )


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")


def _failed(verb: str, done: subprocess.CompletedProcess[str]) -> QemuImgFailed:
    last = foreign.last_line(os.fsencode(done.stderr)) or "no reason given"
    return QemuImgFailed(f"qemu-img {verb}: {last.removeprefix('qemu-img: ')}")
