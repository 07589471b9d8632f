import os
import subprocess
import sys

from zvmsnap.common.process import INIT, Process, parent_of

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
