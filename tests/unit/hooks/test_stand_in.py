"""Whoever waits for a hook waits for its result, not for the end of what hangs in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zvmsnap
from tests.fakes.clock import until
from zvmsnap.common.process import Process
from zvmsnap.hooks import callers, stand_in
from zvmsnap.journal.request import HookCall, Role

ROOT = Path(zvmsnap.__file__).parents[1]
HEAD = "import os, signal, sys, threading, time\nfrom zvmsnap.hooks import stand_in\n"


def hook(text: str, *words: str, kept: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + text, *words],
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=kept,
    )


@pytest.mark.parametrize(
    ("work", "code"),
    [
        pytest.param("lambda: 0", 0, id="well"),
        pytest.param("lambda: 2", 2, id="usage"),
        pytest.param("lambda: os.kill(os.getpid(), signal.SIGKILL)", 1, id="killed"),
        pytest.param("lambda: sys.exit(3)", 3, id="exits"),
        pytest.param("lambda: sys.exit()", 0, id="exits without a code"),
        pytest.param("lambda: 1 // 0", 1, id="raises"),
    ],
)
def test_its_exit_code(work: str, code: int) -> None:
    with hook(f"sys.exit(stand_in.run({work}))") as process:
        process.communicate()
    assert process.returncode == code


def test_what_it_prints_is_not_lost() -> None:
    with hook("sys.exit(stand_in.run(lambda: sys.exit(print('said') or 0)))") as process:
        assert process.communicate()[0] == "said\n"


PRINTS_MUCH = """
def work():
    for number in range(20000):
        os.write(1 + number % 2, f"line {number}\\n".encode())
    return 0
sys.exit(stand_in.run(work))
"""


def test_all_that_it_prints_is_passed_on_in_order() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + PRINTS_MUCH],
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    assert said == "".join(f"line {number}\n" for number in range(20000))


def test_it_is_told_that_nobody_reads_what_it_prints() -> None:
    process = hook(PRINTS_MUCH.replace("range(20000)", "range(2000000)"))
    assert process.stdout and process.stderr
    process.stdout.close()
    assert "line 1999999" not in process.stderr.read()
    assert process.wait(30) == 1


NEVER_ENDS = """
os._exit = lambda code: signal.pause()
sys.exit(stand_in.run(lambda: print(os.getpid(), flush=True) or 2))
"""


def test_child_that_cannot_end_is_not_waited_for() -> None:
    process = hook(NEVER_ENDS)
    assert process.stdout
    child = Process.of(int(process.stdout.readline()))
    try:
        assert process.wait(30) == 2
        # Nor is the end of what it may print: cron, and zrepl, read all of that.
        assert process.communicate(timeout=30) == ("", "")
        assert child.is_alive()
    finally:
        os.kill(child.pid, signal.SIGKILL)
        process.communicate()


MAIN_HANGS = """
stand_in.HangWatch.hangs = lambda watch: True
sys.exit(stand_in.run(lambda: (print(os.getpid(), flush=True), signal.pause())))
"""


def test_child_whose_main_thread_hangs_is_not_waited_for() -> None:
    process = hook(MAIN_HANGS)
    assert process.stdout and process.stderr
    child = int(process.stdout.readline())
    try:
        assert process.wait(30) == 1
        line = process.stderr.readline()
        assert line == (
            "zvmsnap: error: hangs in the kernel: given up after 45 s; is a pool suspended? "
            "zpool status -x\n"
        )
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


TELLS_ITS_SIGNALS = """
from zvmsnap.common.signals import cancelled_with_parent
def work():
    cancelled = cancelled_with_parent(os.getppid())
    print("ready", stand_in.caller_pid(), flush=True)
    return 0 if cancelled.wait(60) else 1
sys.exit(stand_in.run(work))
"""


def test_signal_reaches_the_child() -> None:
    with hook(TELLS_ITS_SIGNALS) as process:
        assert process.stdout
        assert process.stdout.readline() == f"ready {os.getpid()}\n"
        process.terminate()
        process.communicate()
    assert process.returncode == 0


SIGNALLED_AT_ONCE = """
fork = os.fork
def fork_and_signal():
    child = fork()
    if child:
        os.kill(os.getpid(), signal.SIGTERM)
    return child
os.fork = fork_and_signal
sys.exit(stand_in.run(signal.pause))
"""


def test_signal_before_the_child_has_begun_reaches_it() -> None:
    with hook(SIGNALLED_AT_ONCE) as process:
        process.communicate()
    assert process.returncode == 1


DIES = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(300)
"""


def test_child_is_told_of_its_callers_death(tmp_path: Path) -> None:
    tells = HEAD + TELLS_ITS_SIGNALS.replace(
        "    return 0", f"    cancelled.wait(60); open('{tmp_path}/told', 'w')\n    return 0"
    )
    caller = hook(DIES, tells)
    assert caller.stdout and caller.stderr
    assert caller.stdout.readline() == f"ready {caller.pid}\n"
    caller.kill()
    until((tmp_path / "told").exists)
    assert "sanoid died (script_timeout?): putting every guest back" in caller.stderr.read()
    caller.communicate()


def test_what_the_caller_has_open_is_closed(tmp_path: Path) -> None:
    """cron's flock, for one: a child that never ends must not keep it."""
    with (tmp_path / "lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        work = f"lambda: os.path.exists('/proc/self/fd/{file.fileno()}')"
        process = hook(f"sys.exit(stand_in.run({work}))", kept=(file.fileno(),))
        process.communicate()
    assert process.returncode == 0


def test_callers_are_looked_for_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "_caller", os.getpid())
    call = HookCall(Role.PRE, ("tank/web",), ("autosnap_x_hourly",))
    assert callers.find_caller(call, {}).pid == os.getpid()


def test_it_costs_no_time() -> None:
    begun_s = time.monotonic()
    pid = os.fork()
    if not pid:
        os._exit(stand_in.run(lambda: 0))
    assert os.waitpid(pid, 0)[1] == 0
    assert time.monotonic() - begun_s < 5
