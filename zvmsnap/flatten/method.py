"""How a chain is merged. Apart, as the parser needs it, and loads no libvirt."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """`commit` writes the overlays into the last image, `pull` all others into the first."""

    COMMIT = "commit"
    PULL = "pull"
