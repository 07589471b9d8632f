import subprocess
import sys
from pathlib import Path

import pytest

import zvmsnap

ROOT = Path(zvmsnap.__file__).parents[1]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", *arguments],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


ORPHAN = """\
from zvmsnap.common import signals
from zvmsnap.common.errors import Cancelled
try:
    signals.cancelled_with_parent(1)
except Cancelled as error:
    print(error)
"""


def test_a_parent_that_is_dead_already() -> None:
    done = call(ORPHAN)
    assert done.stdout == "sanoid is dead already; nothing was touched\n"


SANOID = """\
import os, subprocess, sys
hook = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
hook.stdout.readline()
os._exit(0)
"""
HOOK = """\
import os
from zvmsnap.common import log, signals
log.setup()
cancelled = signals.cancelled_with_parent(os.getppid())
assert not cancelled.is_set()
os.write(1, b"ready\\n")
print("cancelled" if cancelled.wait(20) else "still waiting", file=__import__("sys").stderr)
"""


def test_cancelled_when_the_parent_dies() -> None:
    done = call(SANOID, HOOK)
    assert "error: sanoid died (script_timeout?): putting every guest back" in done.stderr
    assert done.stderr.endswith("cancelled\n")


SIGNALLED = """\
import io, os, signal, sys, time
from zvmsnap.common import log, signals
sys.stderr = said = io.StringIO()
log.setup()
{setup}
os.kill(os.getpid(), signal.{name})
deadline_s = time.monotonic() + 20
while not said.getvalue().endswith("\\n") and time.monotonic() < deadline_s:
    time.sleep(0.01)
print({state}, said.getvalue(), end="")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize(
    ("setup", "state", "says"),
    [
        pytest.param(
            "event = signals.cancelled_with_parent(os.getppid())",
            "event.wait(20)",
            "error: {}: putting every guest back",
            id="cancelled_with_parent",
        ),
        pytest.param(
            "event = signals.cancelled_by_signal()",
            "event.wait(20)",
            "warning: {}: undoing or finishing first",
            id="cancelled_by_signal",
        ),
        pytest.param(
            "signals.finish_before_dying()",
            "True",
            "warning: {}: finishing first",
            id="finish_before_dying",
        ),
    ],
)
def test_signals_do_not_end_the_process(name: str, setup: str, state: str, says: str) -> None:
    code = SIGNALLED.format(setup=setup, name=name, state=state)
    done = call(code)
    assert done.returncode == 0
    assert done.stdout.startswith("True ")
    assert says.format(name) in done.stdout


WHILE_THE_EVENT_IS_LOCKED = """\
import os, signal
from zvmsnap.common import signals
event = signals.cancelled_by_signal()
with event._cond:
    os.kill(os.getpid(), signal.SIGTERM)
print(event.wait(20))
"""


def test_signal_while_the_main_thread_begins_to_wait() -> None:
    """A handler that sets the event by itself would wait for its own thread for ever."""
    assert call(WHILE_THE_EVENT_IS_LOCKED).stdout == "True\n"


WHILE_THE_MAIN_THREAD_IS_DEAF = """\
import ctypes, os, signal, threading, time
from zvmsnap.common import signals
event = signals.cancelled_by_signal()
def kill():
    time.sleep(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    print(event.wait(10), flush=True)
    os._exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Thread(target=kill).start()
ctypes.CDLL(None).sleep(50)
"""


def test_signal_that_the_main_thread_does_not_notice() -> None:
    """It does not while it waits for a lock, if the signal comes an instant before that."""
    assert call(WHILE_THE_MAIN_THREAD_IS_DEAF).stdout == "True\n"


AT_ONCE = """\
import os, signal
from zvmsnap.common import signals
from zvmsnap.common.errors import Cancelled
signals.cancel_at_once()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Cancelled as error:
    print(error)
"""


def test_cancel_at_once() -> None:
    assert call(AT_ONCE).stdout == "SIGTERM: interrupted; the next run goes on with it\n"


WHILE_IT_FINISHED = """\
import os, signal
from zvmsnap.common import signals
from zvmsnap.common.errors import Cancelled
signals.finish_before_dying()
os.kill(os.getpid(), signal.SIGINT)
print(signals.cancelled_by_signal().is_set())
try:
    signals.cancel_at_once()
    print("goes on")
except Cancelled as error:
    print(error)
print(signals.cancelled_by_signal().is_set())
"""


def test_whoever_goes_on_follows_a_signal_that_came_while_it_finished_first() -> None:
    """And once only."""
    said = "True\nSIGINT: interrupted; the next run goes on with it\nFalse\n"
    assert call(WHILE_IT_FINISHED).stdout == said
