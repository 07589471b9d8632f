"""Results are kept line by line, and a run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import cells, results
from bench.cells import Cell
from bench.results import Result

Build = Callable[..., Result]
CELLS = [Cell("hooks"), Cell("back", ("64 MiB",)), Cell("quiesced")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "build" / "bench.jsonl"


def test_what_was_kept_is_read_and_the_last_counts(path: Path, result: Build) -> None:
    first = result("hooks", {"python3": {"took_s": [1.0]}})
    again = result("hooks", {"python3": {"took_s": [2.0]}}, notes=["one"])
    other = result("back:64 MiB")
    for each in (first, other, again):
        results.append(path, each)
    assert results.latest(path) == {"hooks": again, "back:64 MiB": other}
    assert results.latest(path)["hooks"].of("python3", "took_s") == [2.0]
    assert again.of("python3", "peak_mib") == again.of("none", "took_s") == []


def test_half_a_line_and_other_schemas_are_left_out(path: Path, result: Build) -> None:
    assert results.latest(path) == {}
    results.append(path, result("hooks"))
    line = path.read_text()
    other = json.loads(line) | {"cell": "back:64 MiB", "schema": 2}
    more = json.loads(line) | {"cell": "quiesced", "invented": 1}
    path.write_text(line + "\n".join([json.dumps(other), json.dumps(more), line[:50]]))
    assert list(results.latest(path)) == ["hooks"]


def test_goes_on_with_what_is_missing_in_the_same_order(path: Path, result: Build) -> None:
    assert results.missing(CELLS, {}, "abc", 3) == CELLS
    found = {"back:64 MiB": result("back:64 MiB")}
    assert results.missing(CELLS, found, "abc", 3) == [CELLS[0], CELLS[2]]
    assert results.missing(CELLS, found, "abc", 1) == [CELLS[0], CELLS[2]]


def test_another_product_or_more_repeats_are_missing(result: Build) -> None:
    found = {cell.id: result(cell.id) for cell in CELLS}
    assert results.missing(CELLS, found, "abc", 3) == []
    assert results.missing(CELLS, found, "abd", 3) == CELLS
    assert results.missing(CELLS, found, "abc", 4) == CELLS


def test_cold_figures_do_not_stand_for_warm_ones(result: Build) -> None:
    found = {cell.id: result(cell.id, warm=False) for cell in CELLS}
    assert results.missing(CELLS, found, "abc", 3, warm=True) == CELLS
    assert results.missing(CELLS, found, "abc", 3) == []


def test_the_whole_has_what_was_asked_for() -> None:
    ids = [cell.id for cell in cells.whole()]
    assert len(set(ids)) == len(ids)
    for filled in ("64 MiB", "512 MiB", "1024 MiB"):
        for disks in ("1 disk", "4 disks"):
            for apparmor in ("AppArmor on", "AppArmor off"):
                assert f"round:{filled}:{disks}:{apparmor}" in ids
    for record in ("16K", "64K", "128K"):
        for compression in ("lz4", "zstd"):
            assert f"page images:{record}:{compression}" in ids
    kinds = {cell.kind for cell in cells.whole()}
    assert {cell.kind.split()[-1] for cell in cells.short()} == {kind.split()[-1] for kind in kinds}
    assert {"10 guests", "100 datasets"} <= kinds
    assert "many points:10000 points:100000 snapshots" in ids
