"""Who a clone is: its name, and what must differ from the machine that it comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common.errors import CloneImpossible

ISOLATED_NETWORK = "zvmsnap-isolated"


class Network(StrEnum):
    """What a clone's interfaces are plugged into."""

    NONE = "none"
    KEEP = "keep"
    ISOLATED = "isolated"


@dataclass(frozen=True)
class Identity:
    """Who the clone is, and which point it comes from.

    `nvram` is the path of its firmware variables; None lets libvirt choose one by its name.
    """

    name: str
    uuid: str
    point: str
    nvram: str | None
    network: Network


def refusal(clone: Identity, why: str) -> CloneImpossible:
    """The error that says why this clone cannot be made."""
    return CloneImpossible(f"{clone.point} cannot be cloned as {clone.name}: {why}")


def derived(clone: Identity, old: str) -> bytes:
    """32 bytes in place of an old identifier: the same for the same clone, else others."""
    return hashlib.sha256(f"{clone.uuid} {old}".encode()).digest()
