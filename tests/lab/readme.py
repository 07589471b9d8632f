"""The commands that the documents show, so that they can be followed word for word.

A block of commands is fenced as ```sh. One that begins with #! shows a program, and no commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_HEADING = re.compile(r"#{1,6} +(?P<title>.+?) *")
_FENCE = re.compile(r"(?P<ticks>`{3,}) *(?P<language>\S*)")

# What no test runs, and why: a command; or the title of a section, for all of its commands.
NOT_RUN = {
    "make demo": "it starts a lab of its own",
    "make test": "it runs all tests",
    "make deb": "packages.py makes the same packages, without a virtual environment of their own",
    "git clone <this repository> /opt/zvmsnap": "the lab has its copy of the checkout, and no git",
    "cd /opt/zvmsnap && git pull": "the lab has its copy of the checkout, and no git",
    "Other distributions": "the lab has AppArmor; the page says that this was not tried",
}


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the heading above it, its language, its lines."""

    page: Path
    title: str
    language: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """What is typed, if it is commands of a shell."""
        is_program = self.lines[:1] and self.lines[0].startswith("#!")
        return () if self.language != "sh" or is_program else self.lines


def pages() -> list[Path]:
    """README, and all in docs/."""
    return [_CHECKOUT / "README.md", *sorted((_CHECKOUT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in their order; an indented line is one of the language `indented`."""
    title, ticks, language = "", "", ""
    lines: list[str] = []
    for line in page.read_text().splitlines():
        fence = _FENCE.fullmatch(line)
        if ticks:
            if line == ticks:
                yield Block(page, title, language, tuple(lines))
                ticks, lines = "", []
            else:
                lines.append(line)
        elif fence:
            ticks, language = fence["ticks"], fence["language"]
        elif heading := _HEADING.fullmatch(line):
            title = heading["title"]
        elif line.startswith("    "):
            yield Block(page, title, "indented", (line,))


def commands(title: str) -> list[str]:
    """The commands right below that heading, in their order, but for those that are NOT_RUN."""
    shown = [line for page in pages() for block in blocks(page) if block.title == title
             for line in block.commands]
    assert shown, f"no section {title!r} of README and docs shows commands"
    return [line for line in shown if line not in NOT_RUN]
