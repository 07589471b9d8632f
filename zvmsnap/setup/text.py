"""Lines that are added to a configuration that somebody else has written. Pure.

Nothing that stands there is changed, moved or removed: what is added stands behind the last line of
its section, or at the end. It has the indentation of the lines before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SECTION = re.compile(r"\s*\[\s*(\S|\S.*\S)\s*\]\s*")
_TABLE = re.compile(r"\s*\[")
_IGNORED = re.compile(r"\s*(?:[#;].*)?")
_INDENT = "\t"


def with_keys(text: str, section: str, keys: Mapping[str, str]) -> str:
    """sanoid.conf with further keys in a section that it has; the first of that name."""
    lines = text.split("\n")
    begin = next(n for n, line in enumerate(lines) if _title(line) == section)
    end = next((n for n in range(begin + 1, len(lines)) if _title(lines[n])), len(lines))
    # Comments before the next section belong to that.
    last = max(
        (n for n in range(begin, end) if not _IGNORED.fullmatch(lines[n].rstrip("\r"))),
        default=begin,
    )
    ending = "\r" if lines[begin].endswith("\r") else ""
    indent = _indent_of(lines[last]) if last > begin else _INDENT
    lines[last + 1 : last + 1] = [f"{indent}{key} = {keys[key]}{ending}" for key in keys]
    # The last line of the text had no end, and is not the last one any more.
    return "\n".join(lines)


def with_sections(text: str, sections: Sequence[str]) -> str:
    """sanoid.conf with these sections behind all that it has: parents come before children."""
    if not sections:
        return text
    ending = "\r\n" if "\r\n" in text else "\n"
    added = "\n".join(sections).replace("\n", ending)
    if not text.strip():
        return text + added
    separator = ending if text.endswith("\n") else ending * 2
    return f"{text}{separator}{added}"


def section(title: str, keys: Mapping[str, str], comment: str = "") -> str:
    """A new section, with a comment above it."""
    above = "".join(f"# {line}\n" for line in comment.split("\n")) if comment else ""
    return f"{above}[{title}]\n" + "".join(f"{_INDENT}{k} = {v}\n" for k, v in keys.items())


def with_top_level(text: str, lines: Sequence[str]) -> str:
    """config.toml with further lines above its first table: below, they would belong to that."""
    if not lines:
        return text
    present = text.split("\n")
    first = next((n for n, line in enumerate(present) if _TABLE.match(line)), None)
    if first is None:
        separator = "" if text.endswith("\n") or not text else "\n"
        return text + separator + "".join(f"{line}\n" for line in lines)
    # The comment above a table stays there.
    while first and present[first - 1].lstrip().startswith("#"):
        first -= 1
    return "\n".join([*present[:first], *lines, "", *present[first:]])


def _title(line: str) -> str:
    match = _SECTION.fullmatch(line)
    return match[1] if match else ""


def _indent_of(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
