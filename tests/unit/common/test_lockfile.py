import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import zvmsnap
from zvmsnap.common.errors import LockTimeout
from zvmsnap.common.lockfile import lock, own_lock

HOLDER = """\
import subprocess, sys, time
from pathlib import Path
from zvmsnap.common.lockfile import lock
with lock(Path(sys.argv[1]), "guest", "commit web", 5):
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(directory: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock until it reads a line, and has a child of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zvmsnap.__file__).parents[1])},
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            yield holder, child
        finally:
            os.kill(child, signal.SIGKILL)
            holder.kill()


def test_timeout_names_the_holder(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    with (
        held_elsewhere(tmp_path) as (holder, _),
        pytest.raises(LockTimeout) as caught,
        lock(tmp_path, "guest", "capture web", 0.2),
    ):
        pytest.fail("two hold it")
    assert time.monotonic() - begun_s >= 0.2
    assert str(caught.value) == (
        f"waited 0.2 s for {tmp_path}/guest.lock to capture web; "
        f"it is held to commit web (pid {holder.pid})"
    )


def test_waits_until_it_is_free(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as (holder, _):
        assert holder.stdin is not None
        release = threading.Timer(0.1, holder.stdin.close)
        release.start()
        with lock(tmp_path, "guest", "capture web", 30):
            assert (tmp_path / "guest.lock").read_text() == f"capture web (pid {os.getpid()})"
        release.join()


def test_free_when_its_holder_is_killed_though_its_child_lives_on(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as (holder, child):
        holder.kill()
        holder.wait()
        with lock(tmp_path, "guest", "capture web", 0):
            os.kill(child, 0)
            assert (tmp_path / "guest.lock").exists()


def test_who_waits_for_a_lock_whose_file_goes_gets_one_that_others_see(tmp_path: Path) -> None:
    has_it, leave = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with own_lock(tmp_path, "backup", "back up", 30):
            has_it.set()
            leave.wait(30)

    thread = threading.Thread(target=wait_for_it)
    with own_lock(tmp_path, "backup", "consolidate", 30):
        thread.start()
        time.sleep(0.2)  # it has the file open
    try:
        assert has_it.wait(30)
        with pytest.raises(LockTimeout), own_lock(tmp_path, "backup", "consolidate", 0):
            pytest.fail("two hold it")
    finally:
        leave.set()
        thread.join()
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_other_locks(tmp_path: Path) -> None:
    with lock(tmp_path, "a", "x", 0), lock(tmp_path, "b", "y", 0):
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.lock", "b.lock"]


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        with lock(tmp_path, "guest", f"work {number}", 30):
            inside.append(number)
            most = max(most, len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock(tmp_path, "guest", "fail", 0):
        raise RuntimeError
    with lock(tmp_path, "guest", "go on", 0):
        assert (tmp_path / "guest.lock").read_text().startswith("go on (pid ")


def test_a_long_intent_leaves_nothing_behind(tmp_path: Path) -> None:
    for intent in ("a very long intent indeed", "short"):
        with lock(tmp_path / "run" / "zvmsnap", "guest", intent, 0):
            text = (tmp_path / "run" / "zvmsnap" / "guest.lock").read_text()
        assert text == f"{intent} (pid {os.getpid()})"
    assert (tmp_path / "run" / "zvmsnap").stat().st_mode & 0o077 == 0


DESCRIPTORS = """\
import os
print(sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.exists(f"/proc/self/fd/{fd}")))
"""


@pytest.mark.parametrize("close_fds", [True, False])
def test_children_do_not_get_the_lock(tmp_path: Path, close_fds: bool) -> None:
    with lock(tmp_path, "guest", "run qemu-img", 0):
        said = subprocess.run(
            [sys.executable, "-c", DESCRIPTORS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            close_fds=close_fds,
        ).stdout
        own = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if fd != "0" and os.path.exists(f"/proc/self/fd/{fd}")
        ]
        assert str(tmp_path / "guest.lock") in own
    assert "/dev/null" in said
    assert "guest.lock" not in said


def test_nothing_is_open_afterwards(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with lock(tmp_path, "guest", "x", 0):
        assert descriptors() == before + 1
        with pytest.raises(LockTimeout), lock(tmp_path, "guest", "y", 0):
            pytest.fail("two hold it")
    assert descriptors() == before
