"""The keys of libvirt's qemu.conf on which points depend.

`snapshot_image_format` can spoil every RAM image. With `dynamic_ownership = 0` libvirt gives no
file to QEMU's user, not even the overlays that it makes.
"""

from __future__ import annotations

import re
from pathlib import Path

PATH = Path("/etc/libvirt/qemu.conf")

# libvirt's parser: a string in single, double or triple quotes, behind it a comment or nothing.
_KEY = re.compile(
    r"^[ \t]*snapshot_image_format[ \t]*=[ \t]*"
    r"""(?:\"{3}(?P<triple>.*?)\"{3}|"(?P<double>[^"\r\n]*)"|'(?P<single>[^'\r\n]*)')""",
    re.MULTILINE | re.DOTALL,
)
# libvirt's parser takes digits for a number; it reads no more than this of the line.
_OWNERSHIP = re.compile(r"^[ \t]*dynamic_ownership[ \t]*=[ \t]*(?P<number>\d+)", re.MULTILINE)
_WHY = {
    "sparse": "libvirt then writes RAM images that QEMU cannot load",
    "lz4": "libvirt has no such format, and takes no RAM image",
}


def why_unloadable(path: Path = PATH) -> str | None:
    """Why RAM images that libvirt takes now could not be loaded, and what to do; None if they can.

    A file that is missing or cannot be read says nothing: libvirt's default is fine. Of several
    lines the first counts (virConfGetValue in libvirt's src/util/virconf.c).
    """
    try:
        setting = _KEY.search(path.read_text(errors="replace"))
    except OSError:
        return None
    value = next((text for text in setting.groups() if text is not None), "") if setting else ""
    if value not in _WHY:
        return None
    return (
        f'{path} sets snapshot_image_format = "{value}": {_WHY[value]}; '
        'set it to "raw" and restart libvirtd (or virtqemud)'
    )


def gives_files_to_qemu(path: Path = PATH) -> bool:
    """Does libvirt make QEMU's user the owner of files that a guest uses? By default it does."""
    try:
        setting = _OWNERSHIP.search(path.read_text(errors="replace"))
    except OSError:
        return True
    return setting is None or int(setting["number"]) != 0
