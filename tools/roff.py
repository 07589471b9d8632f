"""Text as man pages have it (man(7)), and pages of docs/ as text of man pages.

Of Markdown it knows what docs/ use: headings, paragraphs, lists, tables, code, links, bold. It is
strict: what it does not know raises ValueError, so that no man page shows marks of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\[(?P<text>(?:[^]`]|`[^`]*`)+)\]\((?P<target>[^)]+)\)"
)
_CELL = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"^\|[-| :]+\|$")
_LIST = re.compile(r"^(?:[-*]|\d+\.) +")


def escaped(text: str) -> str:
    """Text that stands for itself: each `-` is one that can be searched for and copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    text = text.replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^(?=\.)", r"\\&", text, flags=re.M)


def bold(text: str) -> str:
    """The same in bold."""
    return f"\\fB{escaped(text)}\\fR"


def heading(text: str) -> str:
    """A section of the page."""
    return f'.SH "{escaped(text.upper())}"'


def title(name: str, section: int, date: str, version: str) -> str:
    """How a page begins: its title, and no word is cut or stretched."""
    head = f'"{escaped(name.upper())}" "{section}" "{date}" "zvmsnap {version}" "zvmsnap"'
    return f".TH {head}\n.nh\n.ad l"


def preformatted(lines: Iterable[str]) -> list[str]:
    """Lines that stay as they are, indented."""
    return [".PP", ".RS 4", ".nf", *map(escaped, lines), ".fi", ".RE"]


def item(tag: str, text: str) -> list[str]:
    """One entry of a list with tags; both are roff already."""
    return [".TP", tag, *([text] if text else ["\\&"])]


def inline(text: str) -> str:
    """A line of Markdown: code and bold are bold, of a link its text is left."""
    shown, end = "", 0
    for match in _INLINE.finditer(text):
        shown += escaped(text[end : match.start()])
        end = match.end()
        if match["text"]:
            shown += inline(match["text"])
            if match["target"].startswith("http"):
                shown += f" ({escaped(match['target'])})"
        else:
            shown += bold(match["code"] or match["bold"])
    rest = text[end:]
    if "`" in rest or "**" in rest:
        raise ValueError(f"Markdown that no man page can show: {rest!r}")
    return shown + escaped(rest)


def of_markdown(text: str) -> list[str]:
    """A page of docs/ without its title: `##` are sections. Raises ValueError."""
    lines: list[str] = []
    for block in _blocks(text.splitlines()):
        lines += _block(block)
    return lines


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Paragraphs, tables, lists and fenced code, each with all its lines."""
    block: list[str] = []
    fenced = False
    for line in (*lines, ""):
        if line.startswith("```"):
            fenced = not fenced
        ends = not fenced and (not line.strip() or line.startswith("#"))
        if ends and block:
            yield block
            block = []
        if line.startswith("#") and not fenced:
            yield [line]
        elif line.strip() or fenced:
            block.append(line)
    if block:
        raise ValueError(f"code without an end: {block[0]}")


def _block(block: Sequence[str]) -> list[str]:
    first = block[0]
    if first.startswith("# "):
        return []
    if first.startswith("## "):
        return [heading(first[3:])]
    if first.startswith("### "):
        return [f'.SS "{inline(first[4:])}"']
    if first.startswith("```"):
        return preformatted(block[1:-1])
    if all(line.startswith("    ") for line in block):
        return preformatted(line[4:] for line in block)
    if first.startswith("|"):
        return _table(block)
    if _LIST.match(first):
        return _list(block)
    return [".PP", *map(inline, block)]


def _table(block: Sequence[str]) -> list[str]:
    """Each row is an entry: its first cell the tag, those between with their titles."""
    if len(block) < 3 or not _RULE.match(block[1]):
        raise ValueError(f"no table: {block[0]}")
    titles = _cells(block[0])
    lines = []
    for row in block[2:]:
        cells = _cells(row)
        if len(cells) != len(titles):
            raise ValueError(f"{len(titles)} columns, and not in: {row}")
        between = [
            f"{inline(each)}: {inline(cell)};"
            for each, cell in zip(titles[1:-1], cells[1:-1], strict=True)
            if cell
        ]
        lines += item(inline(cells[0]), " ".join((*between, inline(cells[-1]))))
    return lines


def _cells(row: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(row.strip())[1:-1]]


def _list(block: Sequence[str]) -> list[str]:
    lines = []
    for line in block:
        mark = _LIST.match(line)
        if mark:
            word = mark[0].strip()
            lines += [".IP " + ("\\(bu 3" if word in "-*" else f"{word} 4")]
        lines.append(inline(line[len(mark[0]) :] if mark else line.strip()))
    return lines
