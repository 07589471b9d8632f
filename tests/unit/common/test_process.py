import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.clock import until
from zvmsnap.common import process
from zvmsnap.common.errors import GivenUp
from zvmsnap.common.process import (
    HANG_S,
    INIT,
    HangWatch,
    Process,
    asked_meanwhile,
    is_stopped,
    parent_of,
    run_program,
    run_until,
)

NO_PID = 2**22 + 1


def test_parent_of() -> None:
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(NO_PID) == INIT


def test_a_process_is_alive_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process.of(child.pid)
        assert process.is_alive()
        assert process.started > Process.of(os.getpid()).started
    assert not process.is_alive()
    assert Process.of(NO_PID).started == 0
    assert not Process.none().is_alive()


def test_a_later_process_of_the_same_number_is_another() -> None:
    own = Process.of(os.getpid())
    assert not Process(own.pid, own.started - 1, own.boot).is_alive()
    assert not Process(own.pid, own.started, "another boot").is_alive()


def test_one_that_waits_to_be_reaped_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        own = Process.of(child.pid)
        assert child.stdin
        child.stdin.close()
        state = Path(f"/proc/{child.pid}/stat")
        until(lambda: b") Z " in state.read_bytes())
        assert not own.is_alive()


THREADS_ON = """
import ctypes, threading
threading.Thread(target=input).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_one_whose_first_thread_has_ended_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", THREADS_ON], stdin=subprocess.PIPE) as child:
        own = Process.of(child.pid)
        until(lambda: b") Z " in Path(f"/proc/{child.pid}/stat").read_bytes())
        assert own.is_alive()


def test_stopped_by_a_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(child.pid))
        child.send_signal(signal.SIGCONT)
        until(lambda: not is_stopped(child.pid))
    assert not is_stopped(NO_PID)


# -- what hangs in the kernel


class Task:
    """A directory of a task as in /proc, and the time since boot."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.now_s = 1000.0
        monkeypatch.setattr(process, "uptime_s", lambda: self.now_s)

    def is_in(self, state: str, wakes: int) -> None:
        (self.directory / "status").write_text(
            f"Name:\ta: b\nState:\t{state}\nvoluntary_ctxt_switches:\t{wakes}\n"
        )


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    return Task(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("state", "wakes", "hangs"),
    [
        pytest.param("D (disk sleep)", (7, 7, 7), True, id="one sleep"),
        pytest.param("D (disk sleep)", (7, 8, 8), True, id="looks once a minute, as OpenZFS"),
        pytest.param("D (disk sleep)", (7, 60, 99), False, id="slow"),
        pytest.param("S (sleeping)", (7, 7, 7), False, id="waits, and can be interrupted"),
        pytest.param("T (stopped)", (7, 7, 7), False, id="stopped"),
    ],
)
def test_hanging_in_the_kernel(task: Task, state: str, wakes: tuple[int, ...], hangs: bool) -> None:
    watch = HangWatch(task.directory)
    seen = []
    for number in wakes:
        task.is_in(state, number)
        seen.append(watch.hangs())
        task.now_s += HANG_S / 2
    assert seen == [False, False, hangs]


def test_sleep_that_ended_begins_anew(task: Task) -> None:
    watch = HangWatch(task.directory)
    for state in ("D", "R", "D"):
        task.is_in(state, 7)
        assert not watch.hangs()
        task.now_s += HANG_S
    assert watch.hangs()


def test_one_that_has_ended_does_not_hang(task: Task) -> None:
    task.now_s = 2 * HANG_S
    assert not HangWatch(task.directory / "gone").hangs()


def test_program_gets_its_input_and_its_output_is_returned() -> None:
    done = run_program(["sh", "-c", "cat; sleep 1.2; echo late; echo no >&2; exit 3"], b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"given\nlate\n", b"no\n")
    with pytest.raises(FileNotFoundError):
        run_program(["/no/such/program"])


def test_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HangWatch, "hangs", lambda _watch: True)
    monkeypatch.setattr(process, "_LOOK_EVERY_S", 0.01)
    with pytest.raises(GivenUp) as caught:
        run_program(["sleep", "300"])
    assert str(caught.value) == (
        "sleep 300 hangs in the kernel: given up after 45 s; is a pool suspended? zpool status -x"
    )


def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(GivenUp, match=r"^sleep 300: no answer: given up after 0\.2 s$"):
        run_program(["sleep", "300"], limit_s=0.2)
    assert run_program(["echo", "a"], limit_s=60).stdout == b"a\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("how_often", ["while True", "for _ in range(1024)"])
def test_program_that_prints_more_than_it_may(
    stream: str, how_often: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than that is ever read, though the program may end before anybody looks."""
    read: list[int] = []

    def noting(descriptor: int, count: int) -> bytes:
        data = do(descriptor, count)
        read.append(len(data))
        return data

    do = os.read
    monkeypatch.setattr(os, "read", noting)
    program = f"import sys\n{how_often}: sys.{stream}.write('x' * 4096)"
    with pytest.raises(GivenUp, match="prints without end: given up after 1 MiB"):
        run_program([sys.executable, "-c", program], output_max_bytes=1 << 20)
    assert 1 << 20 < sum(read) < (1 << 20) + 2 * (64 << 10)


def test_program_that_prints_all_that_it_may() -> None:
    program = f"import sys\nsys.stdout.write('x' * {1 << 20})"
    done = run_program([sys.executable, "-c", program], output_max_bytes=1 << 20)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x" * (1 << 20), b"")


def test_program_that_gets_more_than_it_reads() -> None:
    done = run_program(["head", "-c", "3"], b"x" * (4 << 20))
    assert (done.returncode, done.stdout) == (0, b"xxx")


def test_program_that_prints_while_it_gets_its_input() -> None:
    """Neither waits for the other, whatever a pipe holds."""
    given = os.urandom(4 << 20)
    assert run_program(["cat"], given).stdout == given


def test_program_that_has_printed_all_is_killed_with_what_it_has_started() -> None:
    done = run_until(["sh", "-c", "echo no >&2; sleep 300 & echo $!; wait"], bool, 60)
    assert (done.returncode, done.stderr) == (0, b"no\n")
    until(lambda: not Process.of(int(done.stdout)).is_alive())


def test_program_that_ends_before_it_has_printed_all() -> None:
    done = run_until(["sh", "-c", "echo a; echo no >&2; exit 3"], lambda _: False, 60)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"a\n", b"no\n")


@pytest.mark.parametrize("text", ["exec sleep 300", "exec >&-; exec sleep 300"])
def test_program_that_neither_prints_nor_ends(text: str) -> None:
    with pytest.raises(GivenUp, match=r"sh -c: no answer: given up after 0\.2 s"):
        run_until(["sh", "-c", text], bool, 0.2)


def test_what_is_asked_meanwhile_ends_a_program() -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        raise GivenUp("no room")

    with asked_meanwhile(check), pytest.raises(GivenUp, match="no room"):
        run_program(["sleep", "100"])
    assert len(asked) == 1
    assert run_program(["sh", "-c", "sleep 1.2; echo there"]).stdout == b"there\n"
