"""Results of cells, a line each as they come: build/bench.jsonl. So a run goes on where it stopped.

A line is a Result as JSON. `figures` are by way and measure, one number for each repeat; measures
end in their unit, _s or _mib.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cells import Cell

SCHEMA = 1

Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Result:
    """What one cell gave.

    `product` changes as it does. `load` is the host's of the last minute and the last five, before
    and after; `elsewhere_cpus` how many of its CPUs were busy on average with what is not the lab.
    """

    cell: str
    product: str
    repeats: int
    warm: bool
    seconds: float
    load: list[list[float]]
    elsewhere_cpus: float
    conditions: dict[str, str]
    figures: Figures
    notes: list[str]
    schema: int = SCHEMA

    def of(self, way: str, measure: str) -> list[float]:
        """All repeats; [] if there are none."""
        return self.figures.get(way, {}).get(measure, [])


def append(path: Path, result: Result) -> None:
    """Keep it, whatever comes next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(asdict(result)) + "\n")


def latest(path: Path) -> dict[str, Result]:
    """The last result of each cell. Half a line of a run that was killed, and other schemas, go."""
    found: dict[str, Result] = {}
    for result in _read(path):
        found[result.cell] = result
    return found


def _read(path: Path) -> Iterable[Result]:
    if path.exists():
        for line in path.read_text().splitlines():
            with suppress(ValueError, TypeError):
                result = Result(**json.loads(line))
                if result.schema == SCHEMA:
                    yield result


def missing(
    cells: Sequence[Cell],
    found: dict[str, Result],
    product: str,
    repeats: int,
    *,
    warm: bool = False,
) -> list[Cell]:
    """Cells that have no result of this product with so many repeats, in their order.

    With `warm`, one that was measured without a first round that does not count is none.
    """

    def is_there(cell: Cell) -> bool:
        result = found.get(cell.id)
        return (
            result is not None
            and result.product == product
            and result.repeats >= repeats
            and result.warm >= warm
        )

    return [cell for cell in cells if not is_there(cell)]
