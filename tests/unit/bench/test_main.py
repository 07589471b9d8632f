"""A run: cell by cell, whatever becomes of one, and on from where it stopped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import cells, results
from bench.cells import Cell
from bench.results import Result

main: Any = importlib.import_module("bench.__main__")
Build = Callable[..., Result]


class FakeLab:
    """It is only asked to go down."""

    downs = 0

    def down(self) -> None:
        FakeLab.downs += 1


@pytest.fixture
def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Build
) -> Callable[..., list[str]]:
    """Runs `make bench` with these words; returns what it has measured. Cells of `bad` fail."""
    done: list[str] = []
    monkeypatch.setattr(main, "LINES", tmp_path / "bench.jsonl")
    monkeypatch.setattr(main, "Lab", FakeLab)
    monkeypatch.setattr(main.scenario, "with_code", lambda lab, state: None)
    monkeypatch.setattr(main.report, "write", lambda found, directory: None)
    monkeypatch.setattr(main.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(main, "product", lambda: "abc")

    def run(*words: str, bad: str = "none", status: int = 0) -> list[str]:
        def one(lab: object, cell: Cell, repeats: int, *, warm: bool) -> Result:
            if cell.id == bad:
                raise RuntimeError("the lab is gone")
            done.append(cell.id)
            return result(cell.id, repeats=repeats, warm=warm)

        done.clear()
        monkeypatch.setattr(main, "_one", one)
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == status
        return list(done)

    return run


def ids(chosen: list[Cell]) -> list[str]:
    return [cell.id for cell in chosen]


def test_goes_on_after_a_cell_that_failed_and_then_with_that_alone(
    measured: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    others = [cell for cell in ids(cells.short()) if cell != "hooks"]
    downs = FakeLab.downs
    assert measured("--short", bad="hooks", status=1) == others
    assert FakeLab.downs == downs + 1
    assert "hooks: RuntimeError: the lab is gone" in capsys.readouterr().err
    assert measured("--short") == ["hooks"]
    assert measured("--short") == []
    assert list(results.latest(main.LINES)) == [*others, "hooks"]


def test_a_short_run_does_not_stand_for_the_whole(measured: Callable[..., list[str]]) -> None:
    assert measured("--short") == ids(cells.short())
    assert measured() == ids(cells.whole())
    assert measured() == []
    kept = set(ids(cells.whole()))
    assert measured("--short") == []
    assert {cell for cell, each in results.latest(main.LINES).items() if each.warm} == kept


def test_only_what_is_named_and_again_if_asked(measured: Callable[..., list[str]]) -> None:
    assert measured("--only", "hooks,10 guests") == ["hooks", "10 guests"]
    assert measured("--only", "hooks") == []
    assert measured("--only", "hooks", "--fresh") == ["hooks"]
    assert measured("--only", "hooks", "--repeats", "5") == ["hooks"]
    assert measured("--only", "hooks", "--report", "--fresh") == []


def test_the_report_is_of_what_was_measured_or_else_of_the_docs(
    measured: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[set[str], Path]] = []
    monkeypatch.setattr(
        main.report, "write", lambda found, path: written.append((set(found), path))
    )
    documented = set(main.report.read((main.DOCS / "performance.json").read_text()))
    assert measured("--report", "--docs") == []
    assert written == [(documented, main.LINES.parent), (documented, main.DOCS)]
    measured("--only", "quiesced")
    assert written[2:] == [({"quiesced"}, main.LINES.parent)]


def test_what_is_measured_without_a_lab_begins_none(
    measured: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(main.scenario, "with_code", lambda lab, state: begun.append(state))
    assert measured("--only", cells.NATIVE) == [cells.NATIVE]
    assert begun == []
    assert measured("--only", f"{cells.NATIVE},hooks,quiesced", "--fresh")[0] == cells.NATIVE
    assert begun == ["ready"]


def test_a_list_measures_nothing(
    measured: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    assert measured("--only", "hooks,quiesced", bad="quiesced", status=1) == ["hooks"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "hooks,quiesced", "--list"])
    main.main()
    assert capsys.readouterr().out.splitlines() == [
        "   3 min  (measured) hooks",
        "   6 min  quiesced",
    ]
