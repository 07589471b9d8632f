import io
import logging
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
