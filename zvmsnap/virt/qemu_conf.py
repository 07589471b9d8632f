"""The one key of libvirt's qemu.conf that can spoil every RAM image: snapshot_image_format."""

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
