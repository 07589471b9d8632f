"""Results, line by line as they come; and the table made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from faults.matrix import COLUMNS, FAULTS, ROWS, Cell, cells, why_not
from faults.verdict import LETTERS
from labkit import settings, version

DIRECTORY = settings.CHECKOUT_DIR / "build"
LINES = DIRECTORY / "faults.jsonl"
TABLE = DIRECTORY / "faults.txt"
_WIDTH = 10


@dataclass(frozen=True)
class Result:
    """What one cell gave."""

    cell: str
    route: str
    letter: str
    recovery_s: float
    seconds: float
    violations: list[str]
    code: str

    def short(self) -> str:
        """As it stands in the table."""
        if self.violations:
            return "FAIL"
        return f"{self.letter} {self.route[0]} {self.recovery_s:.0f}"


def code() -> str:
    """Which product it was."""
    return version.of_product()


def append(result: Result) -> None:
    """Keep it, whatever comes next."""
    DIRECTORY.mkdir(exist_ok=True)
    with LINES.open("a") as lines:
        lines.write(json.dumps(asdict(result)) + "\n")


def latest() -> dict[str, Result]:
    """The last result of each cell."""
    if not LINES.exists():
        return {}
    found = {}
    for line in LINES.read_text().splitlines():
        result = Result(**json.loads(line))
        found[result.cell] = result
    return found


def table() -> str:
    """The matrix, what does not exist and why, and what failed."""
    found = latest()
    reasons: list[str] = []
    first = max(map(len, ROWS)) + 2
    lines = [" " * first + "".join(f"{COLUMNS[fault]:<{_WIDTH}}" for fault in FAULTS)]
    for row in ROWS:
        texts = []
        for fault in FAULTS:
            why = why_not(row, fault)
            if why is None:
                result = found.get(f"{row}:{fault}")
                texts.append(result.short() if result else ".")
            else:
                if why not in reasons:
                    reasons.append(why)
                texts.append(f"({reasons.index(why) + 1})")
        lines.append(f"{row:<{first}}" + "".join(f"{text:<{_WIDTH}}" for text in texts))
    lines += ["", *_legend(), ""]
    lines += [f"({number}) {why}" for number, why in enumerate(reasons, 1)]
    lines += ["", *_summary(cells(), found)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _legend() -> Iterable[str]:
    yield "In each cell: what became of the moment; who brought the guest back: g the guard,"
    yield "r `zvmsnap recover`, n the next run of sanoid, b the boot; seconds that it took from"
    yield "the end of sanoid, or from when the machine answered again, until all was at rest."
    yield "FAIL see below, . not run."
    yield from (f"  {letter}  {meaning}" for letter, meaning in LETTERS.items())
    yield "Staging or vault had been filled, unmounted ... until sanoid had ended; then an"
    yield "administrator put that right, before the recovery."


def _summary(existing: list[Cell], found: dict[str, Result]) -> Iterable[str]:
    run = [found[cell.id] for cell in existing if cell.id in found]
    failed = [result for result in run if result.violations]
    old = sum(result.code != code() for result in run)
    yield (
        f"{len(existing)} cells, {len(run)} run, {len(failed)} failed, "
        f"{sum(result.seconds for result in run) / max(1, len(run)):.0f} s each"
        + (f"; {old} of them with another product than this" if old else "")
    )
    for result in failed:
        yield f"{result.cell} ({result.route}):"
        yield from (f"  {text}" for text in result.violations)


def write_table() -> str:
    """Write it to a file, too, which may be looked at meanwhile."""
    text = table()
    DIRECTORY.mkdir(exist_ok=True)
    draft = Path(f"{TABLE}.{os.getpid()}")
    draft.write_text(text)
    draft.rename(TABLE)
    return text
