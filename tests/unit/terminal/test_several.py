"""Several commands at once: their limit, what they print, and their ends."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from zvmsnap.bulk import progress
from zvmsnap.common.errors import Cancelled
from zvmsnap.common.signals import cancel_at_once
from zvmsnap.terminal import several
from zvmsnap.terminal.several import Ended, run_each


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_each_as_soon_as_it_has_ended(command: Callable[..., object]) -> None:
    commands = {
        "slow": python("import time; time.sleep(0.5); print('s')"),
        "bad": python("raise SystemExit(2)"),
        "killed": python("import os; os.kill(os.getpid(), 9)"),
        "chatty": python("print('x' * 1_000_000)"),
    }
    ended = dict(run_each(commands, 2))
    assert ended["slow"] == Ended(0, "s\n")
    assert (ended["bad"].code, ended["killed"].code) == (2, 1)
    assert len(ended["chatty"].output) == 1_000_001
    assert next(iter(ended)) == "bad"


def test_no_more_than_so_many(tmp_path: Path) -> None:
    code = (
        f"import os, time; from pathlib import Path; own = Path({str(tmp_path)!r}, "
        "str(os.getpid())); own.touch(); time.sleep(0.2); "
        "print(len(list(own.parent.iterdir()))); own.unlink()"
    )
    counts = [int(e.output) for _, e in run_each({str(n): python(code) for n in range(5)}, 2)]
    assert len(counts) == 5 and max(counts) == 2


def test_nothing_to_do() -> None:
    assert list(run_each({}, 2)) == []


def test_all_are_stopped_and_waited_for(tmp_path: Path, command: Callable[..., object]) -> None:
    """Each ends what it has begun; a third one is never started."""
    code = (
        "import signal, sys, time; from pathlib import Path; at = Path(sys.argv[1]); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(at.write_text('undone'))); "
        "at.write_text('begun'); time.sleep(60)"
    )
    paths = [tmp_path / str(number) for number in range(3)]
    commands = {path.name: [*python(code), str(path)] for path in paths}
    cancel_at_once()

    def interrupt() -> None:
        while not all(path.exists() and path.read_text() for path in paths[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Cancelled), closing(run_each(commands, 2)) as each:
        list(each)
    thread.join()
    assert [path.read_text() for path in paths[:2]] == ["undone"] * 2 and not paths[2].exists()


def test_how_much_they_log(monkeypatch: pytest.MonkeyPatch) -> None:
    for level, words in ((logging.DEBUG, ["-v"]), (logging.INFO, []), (logging.WARNING, ["-q"])):
        monkeypatch.setattr(logging.getLogger("zvmsnap"), "level", level)
        line = several.command("backup", "make", "web", "/b")
        assert line == [sys.executable, "-m", "zvmsnap", *words, "backup", "make", "web", "/b"]


def test_they_are_told_to_show_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZVMSNAP_CONFIG", "config.toml")
    code = f"import os; print(os.environ[{progress.BY_LINES!r}], os.environ['ZVMSNAP_CONFIG'])"
    ((_, ended),) = run_each({"one": python(code)}, 1)
    assert ended.output == f"1 {Path('config.toml').absolute()}\n"
