"""HTML and SVG by construction: only what is built here is markup, any other text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from zvmsnap.common import foreign

# Of one text from elsewhere: a reason may be long, the page must not be.
_TEXT_MAX = 400
_ADDRESS = re.compile(r"#[a-z0-9]+|data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_DRAWING = re.compile(r"[MmHhVvZz0-9 .-]*")
_VOID = frozenset(("meta", "img", "br"))


class Markup(str):
    """Text that is markup already; made by this module alone."""

    __slots__ = ()


def text(words: str, at_most: int = _TEXT_MAX) -> Markup:
    """Any text: made printable, cut after so many characters, and escaped."""
    return Markup(escape(foreign.printable(words, at_most)))


def address(uri: str) -> Markup:
    """The address of something inside the page, which may be long."""
    return _checked(uri, _ADDRESS)


def drawing(commands: Iterable[str]) -> Markup:
    """The commands of a path of SVG, which may be many."""
    return _checked("".join(commands), _DRAWING)


def _checked(words: str, pattern: re.Pattern[str]) -> Markup:
    """Raises ValueError for what may not stand in an attribute as it is."""
    if not pattern.fullmatch(words):
        raise ValueError(f"not to be written into an attribute: {words[:40]!r}")
    return Markup(words)


def joined(parts: Iterable[str]) -> Markup:
    """Parts one behind the other; what is not markup is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else text(part) for part in parts))


def element(name: str, /, *children: str, **attributes: str | int | None) -> Markup:
    """An element. An attribute that is None is left out.

    `_` in the name of an attribute stands for `-`; one at the end is left out, as in `class_`.
    """
    words = "".join(
        f' {_attribute(key)}="{value if isinstance(value, Markup) else text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{joined(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
