"""Names of captures: `UUID.XXXXXXXX`, the UUID of the guest and eight random hex digits.

They become parts of paths, and files name them that may be damaged or come from elsewhere:
nothing but these two shapes is taken for one, so none leads out of our directories.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

import msgspec

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_CAPTURE = rf"{_UUID}\.[0-9a-f]{{8}}"

GuestUuid = Annotated[str, msgspec.Meta(pattern=rf"\A{_UUID}\Z")]
CaptureName = Annotated[str, msgspec.Meta(pattern=rf"\A{_CAPTURE}\Z")]


def fresh(uuid: str) -> str:
    """A name that no capture of this guest had before."""
    return f"{uuid}.{os.urandom(4).hex()}"


def is_capture(name: str) -> bool:
    """Is that the name of a capture?"""
    return bool(re.fullmatch(_CAPTURE, name))


def uuid_of(capture: str) -> str:
    """The UUID of the guest that was captured."""
    return capture.partition(".")[0]
