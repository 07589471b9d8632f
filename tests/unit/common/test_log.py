import io
import logging
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zvmsnap
from zvmsnap.common import errors, foreign, log
from zvmsnap.common.errors import NoSpace, ZvmsnapError

DATAGRAM = socket.SOCK_DGRAM
WATCHING = Path(zvmsnap.__file__).parents[1] / "docs/how-to/watching.md"


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
log._SOCKET = sys.argv[3]
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


def said_under_systemd(stream: str, child: str, journal: str = "/nowhere") -> list[str]:
    """What is printed for systemd to read, if its journal takes no entries."""
    done = subprocess.run(
        [sys.executable, "-c", JOURNAL, stream, child, journal],
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


@pytest.fixture
def journal() -> Iterator[socket.socket]:
    """What journald listens at: the path of a socket may have 107 characters."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, DATAGRAM) as own:
        own.bind(f"{folder}/socket")
        own.setblocking(False)
        yield own


def entries(journal: socket.socket) -> list[dict[str, str]]:
    """What journald would keep, by the rules of its protocol."""
    found = []
    with suppress(BlockingIOError):
        while data := journal.recv(1 << 16):
            entry: dict[str, str] = {}
            while data:
                name, _, data = data.partition(b"\n")
                if b"=" in name:
                    name, _, value = name.partition(b"=")
                else:
                    length = int.from_bytes(data[:8], "little")
                    value, data = data[8 : 8 + length], data[9 + length :]
                entry[name.decode()] = value.decode()
            found.append(entry)
    return found


@pytest.mark.parametrize("child", ["", "of a hook"])
def test_the_journal_gets_entries_of_our_own(child: str, journal: socket.socket) -> None:
    """And nothing is printed, which would be of the caller, and in the journal twice."""
    assert said_under_systemd("", child, journal.getsockname()) == []
    done, slow, traceback, failed = entries(journal)
    assert {each["SYSLOG_IDENTIFIER"] for each in (done, slow, traceback, failed)} == {"zvmsnap"}
    assert (done["PRIORITY"], done["MESSAGE"]) == ("6", "done")
    assert (slow["PRIORITY"], slow["MESSAGE"]) == ("4", "warning: web (tank): slow")
    assert (slow["ZVMSNAP_SUBJECT"], "MESSAGE_ID" in slow) == ("web", False)
    assert traceback["PRIORITY"] == "7" and "\n    ValueError: x" in traceback["MESSAGE"]
    assert failed["PRIORITY"] == "3"
    assert failed["MESSAGE"].startswith("error: ValueError at <string>:")
    assert failed["ZVMSNAP_CAUSE"] == "ValueError"
    assert failed["MESSAGE_ID"] == log.message_id("ValueError")


@pytest.fixture
def printed(journal: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What goes to stderr of lines for that journal."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(log, "leads_to_journal", lambda _stream: True)
    monkeypatch.setattr(log, "_SOCKET", journal.getsockname())
    monkeypatch.setattr(log, "_SEND_WITHIN_S", 0.05)
    monkeypatch.setattr(log.plain(), "propagate", False)
    before = log.plain().handlers[:]
    log.setup()
    yield stderr
    log.plain().handlers[:] = before


def test_a_journal_that_takes_nothing_is_not_waited_for_again(
    journal: socket.socket, printed: io.StringIO
) -> None:
    for number in range(2000):
        log.plain().warning("%d", number)
    taken = [entry["MESSAGE"] for entry in entries(journal)]
    said = [line.removeprefix("<4>zvmsnap: ") for line in printed.getvalue().splitlines()]
    assert 0 < len(taken) < 2000
    assert taken + said == [f"warning: {number}" for number in range(2000)]


def test_a_line_that_is_too_long_for_the_journal_goes_elsewhere_alone(
    journal: socket.socket, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a traceback of many frames, with the error that it is of after it."""
    monkeypatch.setattr(foreign.printable, "__defaults__", (1 << 20,))
    log.plain().warning("x" * (1 << 19))
    log.plain().error("no")
    assert printed.getvalue() == f"<4>zvmsnap: warning: {'x' * (1 << 19)}\n"
    assert [entry["MESSAGE"] for entry in entries(journal)] == ["error: no"]


def test_a_line_that_cannot_be_made_ends_nothing(
    journal: socket.socket, printed: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    handler, *_of_pytest = log.plain().handlers
    wrong = logging.LogRecord("zvmsnap", logging.ERROR, "x.py", 1, "%d", ("no number",), None)
    handler.handle(wrong)
    log.plain().error("after it")
    assert "TypeError" in capsys.readouterr().err
    assert [entry["MESSAGE"] for entry in entries(journal)] == ["error: after it"]
    assert printed.getvalue() == ""


def test_what_a_line_is_about(journal: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_of(say: Callable[[], None]) -> dict[str, str]:
        (record,) = records(say, monkeypatch)
        return log._fields(record, record.getMessage())

    def step_failed() -> None:
        error = ZvmsnapError("at step x")
        error.cause = NoSpace("full")  # type: ignore[attr-defined]
        log.about("web", "tank").error("no: %s", error)

    assert entry_of(step_failed)["ZVMSNAP_CAUSE"] == "NoSpace"
    said = entry_of(lambda: log.failure(log.about("a\nb", "tank"), OSError("x")))
    assert (said["ZVMSNAP_SUBJECT"], said["ZVMSNAP_CAUSE"]) == ("a b", "OSError")
    assert "ZVMSNAP_SUBJECT" not in entry_of(lambda: log.plain().error("x"))


def records(say: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", kept.append)
    monkeypatch.setattr(log.plain(), "handlers", [handler])
    say()
    return kept


def test_the_unit_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    really = open

    def opened(path: str, *rest: Any) -> Any:
        return really(file if path == "/proc/self/cgroup" else path, *rest)

    monkeypatch.setattr("builtins.open", opened)
    for text, unit in (
        ("0::/system.slice/sanoid.service\n", "sanoid.service"),
        ("0::/system.slice/a.service/inner\n", "a.service"),
        ("4:memory:/x.service\n1:name=systemd:/user.slice/session-2.scope\n", "session-2.scope"),
        ("0::/\n", ""),
    ):
        file.write_text(text)
        assert log._own_unit() == unit


def test_ids_that_are_documented() -> None:
    text = WATCHING.read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([0-9a-f]{32})` \|", text, re.M)
    assert len(rows) >= 10
    for cause, number in rows:
        assert issubclass(getattr(errors, cause), ZvmsnapError)
        assert log.message_id(cause) == number


def test_what_does_not_lead_to_the_journal_has_times_instead() -> None:
    """As of a unit whose output somebody sends elsewhere."""
    for line in said_under_systemd("1:2", ""):
        assert not line.startswith("<")
        assert re.match(r"\d{4}-\d\d-\d\dT|    ", line)
