"""The recipes of the documents, so that they can be followed word for word."""

from __future__ import annotations

import re
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


def commands(recipe: str) -> list[str]:
    """The commands of the section with that title in README or docs/how-to, in their order."""
    for page in (_CHECKOUT / "README.md", *sorted((_CHECKOUT / "docs" / "how-to").glob("*.md"))):
        _, title, rest = page.read_text().partition(f"\n## {recipe}\n")
        if title:
            section = rest.partition("\n## ")[0]
            return [line for block in _SHELL.findall(section) for line in block.splitlines()]
    raise AssertionError(f"README and docs/how-to have no recipe {recipe!r}")
