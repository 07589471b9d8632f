"""Prints the tables, and writes them: as JSON, as SVG, and into the blocks of a page of docs.

A block lies between two lines, and what lies around stays:

    <!-- bench: goals -->
    <!-- end of bench: goals -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from bench import chart, tables
from bench.results import SCHEMA, Result

Found = Mapping[str, Result]

_BLOCK = re.compile(
    r"^<!-- bench: (?P<name>\w+) -->\n.*?^<!-- end of bench: (?P=name) -->$", re.M | re.S
)


def text(found: Found) -> str:
    """All tables."""
    blocks = [f"## {name}\n\n" + "\n".join(make(found)) for name, make in tables.BLOCKS.items()]
    return "\n\n".join(blocks) + "\n"


def as_json(found: Found) -> str:
    """All results, with their conditions; `read` reads it."""
    cells = [asdict(result) for result in found.values()]
    return json.dumps({"schema": SCHEMA, "cells": cells}, indent=1) + "\n"


def read(content: str) -> dict[str, Result]:
    """What `as_json` wrote. Raises ValueError for another schema."""
    written = json.loads(content)
    if written["schema"] != SCHEMA:
        raise ValueError(f"results of schema {written['schema']}, not {SCHEMA}")
    return {cell["cell"]: Result(**cell) for cell in written["cells"]}


def page(old: str, found: Found) -> str:
    """The page with its blocks made anew. Raises KeyError for a block that nothing makes."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        body = "\n".join(tables.BLOCKS[name](found))
        return f"<!-- bench: {name} -->\n\n{body}\n\n<!-- end of bench: {name} -->"

    return _BLOCK.sub(block, old)


def write(found: Found, directory: Path) -> None:
    """Write performance.json and performance.svg, and fill the blocks of performance.md if any."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.json").write_text(as_json(found))
    (directory / "performance.svg").write_bytes(chart.svg(found))
    written = directory / "performance.md"
    if written.exists():
        written.write_text(page(written.read_text(), found))
