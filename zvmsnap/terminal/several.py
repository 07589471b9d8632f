"""Does the same for several guests, some at once: a command of ours for each, in its own process.

So each has its own locks, journal and signals, and ends as if it were alone. What they log goes
where this process logs, in whole lines. If this process is asked to stop, so are they, and it waits
for their ends: whatever each has begun is undone or finished by itself.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.bulk import progress
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED
from zvmsnap.common.signals import finish_before_dying

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent.parent
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, and what it has printed."""

    code: int
    output: str


def command(*words: str) -> list[str]:
    """A command line of ours, which logs as much as this process does."""
    level = log.plain().level
    options = ["-v"] if level <= logging.DEBUG else ["-q"] if level > logging.INFO else []
    return [sys.executable, "-m", "zvmsnap", *options, *words]


def run_each(
    commands: Mapping[str, Sequence[str]], at_once: int
) -> Generator[tuple[str, Ended], None, None]:
    """Run them, so many at once; yields each as soon as it has ended. To be closed.

    Raises OSError. However it ends, all that it has started has ended then.
    """
    todo = dict(commands)
    running: dict[str, _Child] = {}
    try:
        while todo or running:
            while todo and len(running) < at_once:
                name = next(iter(todo))
                running[name] = _Child(todo.pop(name))
            if ended := [name for name, child in running.items() if child.has_ended()]:
                yield ended[0], running.pop(ended[0]).ended()
            else:
                next(iter(running.values())).wait(_LOOK_EVERY_S)
    finally:
        if running:
            finish_before_dying()
            for child in running.values():
                child.stop()
            for child in running.values():
                child.ended()


class _Child:
    def __init__(self, words: Sequence[str]) -> None:
        # A file: a pipe that nobody reads from until the end would hold its writer.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed at its end
        self._process = subprocess.Popen(
            words,
            cwd=_PACKAGE_PARENT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            process_group=0,  # Ctrl-C reaches it once, by us
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, limit_s: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)

    def stop(self) -> None:
        self._process.terminate()

    def ended(self) -> Ended:
        code = self._process.wait()
        with self._output as output:
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Ended(EXIT_FAILED if code < 0 else code, text)


def _environment() -> dict[str, str]:
    """They run in another directory, so a relative path would lead elsewhere."""
    environment = {**os.environ, progress.BY_LINES: "1"}
    if path := environment.get("ZVMSNAP_CONFIG"):
        environment["ZVMSNAP_CONFIG"] = os.path.abspath(path)
    return environment
