"""The README's recipes, so that they can be followed word for word."""

from __future__ import annotations

from labkit import settings

_README = settings.CHECKOUT_DIR / "README.md"


def commands(recipe: str) -> list[str]:
    """The commands of the recipe whose bold title begins so, in their order."""
    _, found, rest = _README.read_text().partition(f"\n**{recipe}")
    assert found, f"the README has no recipe {recipe!r}"
    body = rest.partition("\n**")[0].partition("\n## ")[0]
    return [line.removeprefix("    ") for line in body.splitlines() if line.startswith("    ")]
