"""`make bench`: what zvmsnap costs, beside what people did before, measured in the lab.

Each cell is kept as it comes, in build/bench.jsonl; a run that was stopped goes on. Figures, not
assertions: the lab may be a machine in software emulation, in which everything takes ten to fifty
times as long as on a real host. Ratios are what counts, of what one cell measured side by side.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import scenario

from bench import back, backups, crowd, hooks, images, many, native, peaks, report, results, rounds
from bench.cells import BACKUPS, IMAGES, NATIVE, REPEATS, SHORT_REPEATS, Cell, number, short, whole
from bench.conditions import Elsewhere, load, of_host, of_lab, of_lab_s, own_s, product
from bench.results import Result
from bench.scene import Measured
from labkit.api import Lab
from labkit.settings import CHECKOUT_DIR

LINES = CHECKOUT_DIR / "build" / "bench.jsonl"
DOCS = CHECKOUT_DIR / "docs"


def main() -> None:
    """Measure what is missing; then print and write what there is."""
    asked = _arguments()
    # `timeout` and the like: the lab must not be left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; what was measured is kept"))
    cells = [cell for cell in (short() if asked.short else whole()) if _is_named(cell, asked.only)]
    repeats = asked.repeats or (SHORT_REPEATS if asked.short else REPEATS)
    warm = not asked.short
    left = results.missing(cells, results.latest(LINES), product(), repeats, warm=warm)
    if asked.fresh:
        left = cells
    if asked.list:
        for cell in cells:
            print(f"{cell.minutes:4} min  {'' if cell in left else '(measured) '}{cell.id}")
        return
    failed = [] if asked.report else _run(left, repeats, warm=warm)
    # Where nothing was ever measured, the page is made anew of what it was made of.
    found = results.latest(LINES) or report.read((DOCS / "performance.json").read_text())
    print(report.text(found))
    report.write(found, LINES.parent)
    if asked.docs:
        report.write(found, DOCS)
    for line in failed:
        print(line, file=sys.stderr)
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one cell of each kind, once")
    parser.add_argument("--fresh", action="store_true", help="again what was measured")
    parser.add_argument("--only", default="", help="cells with one of these in their name: a,b")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="the cells, and minutes of each")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.*, too")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report")
    return parser.parse_args()


def _is_named(cell: Cell, only: str) -> bool:
    return any(part in cell.id for part in only.split(","))


def _run(cells: list[Cell], repeats: int, *, warm: bool) -> list[str]:
    """Measure the cells, one after the other; returns a line for each that failed."""
    lab, failed = Lab(), []
    in_lab = [cell for cell in cells if cell.kind != NATIVE]
    try:
        for position, cell in enumerate(cells, 1):
            if cell in in_lab[:1]:
                scenario.with_code(lab, "ready")
            print(f"bench {position} of {len(cells)}: {cell.id}", file=sys.stderr, flush=True)
            try:
                results.append(LINES, _one(lab, cell, repeats, warm=warm))
            except Exception as error:  # the others are measured, whatever becomes of one
                failed.append(f"{cell.id}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
    finally:
        lab.down()
    return failed


def _one(lab: Lab, cell: Cell, repeats: int, *, warm: bool) -> Result:
    load_before, elsewhere, begun_s, had_s = load(), Elsewhere(), time.monotonic(), own_s()
    if cell.kind == NATIVE:
        measured = native.measure(repeats, warm=warm)
        used_s, conditions = own_s() - had_s, native.conditions()
    else:
        measured = _measure(lab, cell, repeats, warm=warm)
        used_s, conditions = of_lab_s(lab), of_lab(lab)
    return Result(
        cell=cell.id,
        product=product(),
        repeats=repeats,
        warm=warm,
        seconds=round(time.monotonic() - begun_s),
        load=[load_before, load()],
        elsewhere_cpus=elsewhere.cpus(used_s),
        conditions=of_host() | conditions,
        figures=measured.figures,
        notes=measured.notes,
    )


def _measure(lab: Lab, cell: Cell, repeats: int, *, warm: bool) -> Measured:
    match cell.kind:
        case "round":
            return rounds.measure(lab, cell, repeats, warm=warm)
        case "quiesced":
            return rounds.measure_quiesced(lab, repeats, warm=warm)
        case "hooks":
            return hooks.measure(lab, repeats, warm=warm)
        case "back":
            return back.measure(lab, cell, repeats, warm=warm)
        case "peak memory":
            return peaks.measure(lab)
        case "many points":
            return many.measure(lab, cell, repeats, warm=warm)
    if cell.kind == IMAGES:
        return images.measure(lab, cell, repeats)
    if cell.kind == BACKUPS:
        return backups.measure(lab, repeats)
    if cell.kind.endswith(" guests"):
        return crowd.measure(lab, number(cell.kind), repeats)
    return hooks.measure_datasets(lab, cell, repeats)


if __name__ == "__main__":
    main()
