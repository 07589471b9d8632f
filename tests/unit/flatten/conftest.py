"""A guest on a chain of four images that somebody else has left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.images import make_base, write


@pytest.fixture
def chained(
    guest: FakeGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Puts a disk on three overlays, each with a write of its own; returns the images, top first.

    `target` may be another disk than vda, which the guest gets then.
    """

    def format_of(source: str) -> str:
        return "raw" if source.endswith(".raw") else "qcow2"

    monkeypatch.setattr(guest, "format_of", format_of)

    def build(target: str = "vda") -> list[str]:
        if target not in guest.live:
            path = str(make_base(tmp_path / "tank" / f"{target}.raw"))
            guest.live[target] = guest.persistent[target] = path
        images = [guest.live[target]]
        for number in (1, 2, 3):
            overlay = tmp_path / "tank" / f"{target}.snap{number}"
            guest.on_overlay(target, overlay)
            write(overlay, number, at_kib=64 * number)
            images.insert(0, str(overlay))
        return images

    return build
