"""What docs/reference/json.md says of each command's JSON, read as a schema."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from zvmsnap.terminal.options import JSON_VERSION

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "json.md"
SECTION = re.compile(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", re.M | re.S)
ROW = re.compile(r"^\| (`\w+`|…)( \([^|]*\))? \| ([^|]+) \|", re.M)
INCLUDED = "…"
OPTIONAL = "? "  # before the type of a key that is not always there
BACKUP = "backup"  # several documents of which the page has no table each

Table = dict[str, str]


@cache
def tables() -> tuple[dict[str, Table], dict[str, Table]]:
    """The tables of the commands, and those of the parts: keys and types."""
    text = PAGE.read_text()
    commands, _, parts = text.partition("\n## Parts\n")
    return tuple(  # type: ignore[return-value]
        {
            name: {
                key.strip("`"): OPTIONAL * bool(when) + kind.strip()
                for key, when, kind in ROW.findall(rows)
            }
            for name, rows in SECTION.findall(half)
        }
        for half in (commands, parts)
    )


def of_command(arguments: tuple[str, ...], document: dict[str, Any]) -> Table | None:
    """The table that is meant for the document of that command line; None: it has none."""
    commands, _ = tables()
    found = [word for word in arguments if word in commands]
    assert found, f"docs/reference/json.md has no section for {' '.join(arguments)}"
    name = found[0]
    if name == BACKUP:
        return None
    if name == "send" and "forgotten" in document:
        name = "send --forget"
    if name == "files" and "target" in document:
        name = "files, of a copy"
    return commands[name]


def check(arguments: tuple[str, ...], text: str) -> None:
    """Raises AssertionError unless the text is what the page says of that command line."""
    document = json.loads(text)
    assert document.pop("json_version") == JSON_VERSION
    table = of_command(arguments, document)
    if table is not None:
        wrong = [*_of_table(table, document, "")]
        assert not wrong, f"docs/reference/json.md: {'; '.join(wrong)}"


def _whole(table: Table) -> Table:
    whole: Table = {}
    for key, kind in table.items():
        whole |= _whole(tables()[1][kind]) if key == INCLUDED else {key: kind}
    return whole


def _of_table(table: Table, value: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: is no object"]
    known = _whole(table)
    wrong = [f"{where}.{key}: is not described" for key in value.keys() - known.keys()]
    wrong += [
        f"{where}.{key}: is missing"
        for key in known.keys() - value.keys()
        if not known[key].startswith(OPTIONAL)
    ]
    for key in known.keys() & value.keys():
        wrong += _of_type(known[key].removeprefix(OPTIONAL), value[key], f"{where}.{key}")
    return wrong


def _of_type(kind: str, value: Any, where: str) -> list[str]:
    if kind.endswith(" or null"):
        return [] if value is None else _of_type(kind.removesuffix(" or null"), value, where)
    if kind.startswith("list of "):
        if not isinstance(value, list):
            return [f"{where}: is no list"]
        inner = kind.removeprefix("list of ")
        return [why for each in value for why in _of_type(inner, each, where)]
    if kind.startswith("map of "):
        if not isinstance(value, dict):
            return [f"{where}: is no map"]
        inner = kind.removeprefix("map of ")
        return [
            why for key, each in value.items() for why in _of_type(inner, each, f"{where}.{key}")
        ]
    if kind in PLAIN:
        return [] if PLAIN[kind](value) else [f"{where}: {value!r} is no {kind}"]
    assert kind in tables()[1], f"docs/reference/json.md: {where}: there is no type {kind!r}"
    return _of_table(tables()[1][kind], value, where)


def _is_time(value: Any) -> bool:
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


PLAIN: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "yes or no": lambda value: isinstance(value, bool),
    "time": _is_time,
    "anything": lambda _value: True,
}
