import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zvmsnap
from zvmsnap.common import foreign, log


@pytest.mark.parametrize("domain", ["web", "50%", "100%s", "%d%%"])
def test_lines_begin_with_guest_and_dataset(domain: str, caplog: pytest.LogCaptureFixture) -> None:
    about = log.about(domain, "tank/web")
    about.warning("%d MiB of %s", 3, "RAM")
    about.warning("100 % done")
    about.error("no: %s", OSError("5%"))
    assert caplog.messages == [
        f"{domain} (tank/web): 3 MiB of RAM",
        f"{domain} (tank/web): 100 % done",
        f"{domain} (tank/web): no: 5%",
    ]
    assert {record.filename for record in caplog.records} == {"test_log.py"}


def test_what_nobody_foresaw_is_one_line_and_a_traceback_for_whoever_wants_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "zvmsnap")
    try:
        dict[str, str]()["vda"]
    except KeyError as error:
        log.failure(log.about("web", "tank"), error, "no point")
    debug, line = caplog.records
    assert line.getMessage().startswith("web (tank): no point: KeyError at test_log.py:")
    assert line.getMessage().endswith(": 'vda'")
    assert debug.levelno == logging.DEBUG
    assert debug.exc_info
    log.failure(log.plain(), OSError("no space"))
    assert caplog.messages[-1] == "no space"


def lines_of(monkeypatch: pytest.MonkeyPatch, say: Callable[[], None]) -> list[str]:
    """What whoever reads our stderr is shown."""
    with monkeypatch.context() as patch:
        stderr = io.StringIO()
        patch.setattr(sys, "stderr", stderr)
        # pytest would keep the text for its report, which cannot have surrogates beside xdist.
        patch.setattr(log.plain(), "propagate", False)
        log.setup(1)
        say()
        return stderr.getvalue().split("\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters()), name=st.text(st.characters()))
def test_a_line_is_one_line_that_may_be_printed(
    text: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say() -> None:
        log.about(name, "tank/web").warning("no: %s", text)
        log.failure(log.plain(), ValueError(text), "what nobody foresaw")

    for line in lines_of(monkeypatch, say)[:-1]:
        assert line.isprintable()
        assert "zvmsnap: " in line or line.startswith("    ")


def test_nobody_can_forge_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "no\x1b[1A\nzvmsnap: error: web: its disks are lost"

    def say() -> None:
        log.plain().warning("%s", evil)
        try:
            raise ValueError(evil)
        except ValueError as error:
            log.failure(log.plain(), error)

    lines = lines_of(monkeypatch, say)
    assert [line for line in lines if line.startswith("zvmsnap: ") or " zvmsnap: " in line[:40]]
    assert not [line for line in lines if line.startswith("zvmsnap: error: web")]
    assert lines[0].endswith(r"no\x1b[1A\nzvmsnap: error: web: its disks are lost")


def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    line, _ = lines_of(monkeypatch, lambda: log.plain().warning("%s", "x" * (10 << 20)))
    assert len(line) <= foreign.PRINTED_MAX


JOURNAL = """
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = sys.argv[1] or f"{status.st_dev}:{status.st_ino}"
from zvmsnap.common import log
from zvmsnap.hooks import stand_in
def work():
    log.setup(1)
    log.plain().info("done")
    log.about("web", "tank").warning("slow")
    try:
        raise ValueError("x")
    except ValueError as error:
        log.failure(log.plain(), error)
    return 0
sys.exit(stand_in.run(work) if sys.argv[2] else work())
"""


def said_under_systemd(stream: str, child: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", JOURNAL, stream, child],
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(zvmsnap.__file__).parents[1],
    )
    return done.stderr.splitlines()


@pytest.mark.parametrize("child", ["", "of a hook"])
def test_the_journal_gets_a_priority_with_each_line(child: str) -> None:
    """Of a hook, too, which prints through a pipe."""
    lines = said_under_systemd("", child)
    assert lines[:2] == ["<6>zvmsnap: done", "<4>zvmsnap: warning: web (tank): slow"]
    assert lines[-1].startswith("<3>zvmsnap: error: ValueError at <string>:")
    assert len(lines) > 4 and all(line.startswith("<7>") for line in lines[2:-1])


def test_what_does_not_lead_to_the_journal_has_times_instead() -> None:
    """As of a unit whose output somebody sends elsewhere."""
    for line in said_under_systemd("1:2", ""):
        assert not line.startswith("<")
        assert re.match(r"\d{4}-\d\d-\d\dT|    ", line)
