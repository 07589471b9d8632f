"""Steps: each changes one thing of the outside world, is written down first, and can be undone.

A step that raises is undone too: its `undo` must work after "not begun", "half done" and "done".
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.common.log import one_line

# For tests/lab: the hook stops itself (SIGSTOP) before each step of these names (separated by
# commas), after it has been written down, so that anything may happen at that very point.
STOP_BEFORE = "ZVMSNAP_TEST_STOP_BEFORE"


@dataclass(frozen=True)
class Step:
    """One named change; `undo` is None if it leaves nothing outside."""

    name: str
    do: Callable[[], None]
    undo: Callable[[], None] | None = None


class StepFailed(ZvmsnapError):
    """The first error, in which step, and what could not be undone after it."""

    def __init__(self, step: str, cause: BaseException, not_undone: Sequence[str]) -> None:
        message = f"{step}: {one_line(cause)}"
        if not_undone:
            message += f" (and could not be undone: {'; '.join(not_undone)})"
        super().__init__(message)
        self.step = step
        self.cause = cause
        self.not_undone = tuple(not_undone)


def run(
    steps: Sequence[Step], record: Callable[[str], None], *, begin_with: str | None = None
) -> None:
    """Do `steps` in order; `record(name)` writes each down before it begins.

    `begin_with` names the step at which an interrupted run goes on. On any failure undoes in
    reverse order, the failing step first, and raises StepFailed. All undos are tried, also after
    one has failed. Raises ZvmsnapError, with nothing done, if no step has that name.
    """
    first = _position(steps, begin_with) if begin_with else 0
    for position, step in enumerate(steps[first:], first):
        try:
            record(step.name)
            _boundary(step.name)
            step.do()
        except BaseException as cause:
            not_undone = _undo(steps[: position + 1], record)
            raise StepFailed(step.name, cause, not_undone) from cause


def take_back(steps: Sequence[Step], last: str, record: Callable[[str], None]) -> list[str]:
    """Undo interrupted steps, from step `last` back; returns what could not be undone.

    Raises ZvmsnapError if no step has that name.
    """
    return _undo(steps[: _position(steps, last) + 1], record)


def _position(steps: Sequence[Step], name: str) -> int:
    names = [step.name for step in steps]
    if name not in names:
        raise ZvmsnapError(f"{name!r} is no step of this; it was begun by another version?")
    return names.index(name)


def _boundary(name: str) -> None:
    if name in os.environ.get(STOP_BEFORE, "").split(","):
        os.kill(os.getpid(), signal.SIGSTOP)


def _undo(done: Sequence[Step], record: Callable[[str], None]) -> list[str]:
    not_undone: list[str] = []
    for step in reversed(done):
        if step.undo is None:
            continue
        # The guest is put back though the journal cannot be written (a full disk?). The first step
        # that could not be undone stays written down: the next attempt begins there.
        with suppress(Exception):
            if not not_undone:
                record(f"undo {step.name}")
        try:
            _boundary(f"undo {step.name}")
            step.undo()
        except Exception as error:
            not_undone.append(f"{step.name}: {one_line(error)}")
    return not_undone
