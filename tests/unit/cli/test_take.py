import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from zvmsnap.capture.take import TakePlan
from zvmsnap.cli import take
from zvmsnap.cli.take import TakeOptions, TakeReport
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint

PLAN = TakePlan(("db", "web"), ("tank/db", "tank/web"), "x", ("u1", "u2"))
Options = dict[str, object]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"domains": []}, "say DOMAIN..., or --group NAME", id="no guest"),
        pytest.param({"group": "shop"}, "say DOMAIN..., or --group NAME", id="guest and group"),
        pytest.param({"keep": 7}, "not with --name", id="keep and name"),
    ],
)
def test_options_that_contradict_each_other(changes: Options, says: str) -> None:
    good: Options = dict.fromkeys(("group", "mode", "keep", "hold"))
    good |= {"domains": ["web"], "name": "x", "dry_run": False}
    TakeOptions(**good).check()  # type: ignore[arg-type]
    with pytest.raises(typer.BadParameter, match=says):
        TakeOptions(**(good | changes)).check()  # type: ignore[arg-type]


def test_report(manifest: Callable[..., Manifest]) -> None:
    point = RestorePoint(Path("/v/web/x"), manifest())
    report = TakeReport(PLAN, [point], ["web@old"], dry_run=False)
    assert list(report.lines()) == ["web@x: memory", "dropped web@old"]
    assert report.as_json() == {
        "dry_run": False,
        "name": "x",
        "domains": ("db", "web"),
        "datasets": ("tank/db", "tank/web"),
        "points": [{"name": "web@x", "level": "memory", "pause_s": 0.0}],
        "dropped": ["web@old"],
    }
    assert list(TakeReport(PLAN, [], ["web@old"], dry_run=True).lines()) == [
        "would take x of db, web:",
        "  tank/db",
        "  tank/web",
        "would drop web@old",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal(
    config: Config,
    entry: Callable[..., Entry],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    journal = Journal(config.journal_dir)
    printed = ""
    with take._progress_shown(config, PLAN):
        for step in ("dump", "dump", "frozen") if terminal else ("dump",):
            journal.write(entry(snapshot_names=("x",), step=step))
            deadline_s = time.monotonic() + 30
            while terminal and f"web: {step}\n" not in printed and time.monotonic() < deadline_s:
                printed += capsys.readouterr().err
                time.sleep(0.001)
    assert printed == ("web: dump\nweb: frozen\n" if terminal else "")
