"""Failures on their way to the administrator's programs.

A failure is noted at once, in the directory of locks, which is in RAM: guests may stand still, and
nobody waits for a disk. It is delivered when no guest waits any more: by post, prune, the watchdog
or a command, or by pre itself if it has captured nothing.

    note       a file in <locks>/notices
    deliver    it is counted (failures), each program gets it (programs), the file goes

Nothing of that ever fails a hook: what goes wrong is logged.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.errors import LockTimeout
from zvmsnap.common.lockfile import lock
from zvmsnap.common.safe_files import private_dir
from zvmsnap.config.settings import Config
from zvmsnap.notify import failures, programs
from zvmsnap.notify.event import Event

FOLDER = "notices"
# So long sanoid may wait for all programs, whatever there is to be told.
_DELIVERY_S = 30.0
_LOCK = "tell-failures"

_numbers = itertools.count()
_noted = itertools.count()
_last = -1


def note(config: Config, event: Event) -> None:
    """Let the event be delivered soon. Never raises."""
    global _last
    _last = next(_noted)
    try:
        directory = private_dir(private_dir(config.locks_dir) / FOLDER)
        name = f"{time.time_ns():020}-{os.getpid()}-{next(_numbers)}"
        new = directory / f".{name}.new"
        new.write_bytes(msgspec.json.encode(event))
        new.rename(directory / f"{name}.json")
    except OSError as error:
        log.failure(log.plain(), error, "nobody will be told of a failure")


def count() -> int:
    """How many failures this process has noted."""
    return _last + 1


def deliver(config: Config) -> None:
    """Deliver what was noted, by this process or another. Never raises."""
    try:
        while _pending(config):
            with lock(config.locks_dir, _LOCK, "tell of failures", 0):
                _deliver(config)
    except LockTimeout:
        return  # somebody else does it
    except Exception as error:
        log.failure(log.plain(), error, "nobody was told of a failure")


def _deliver(config: Config) -> None:
    until_s = time.monotonic() + _DELIVERY_S
    files = _pending(config)
    events = list(_read(files))
    try:
        failures.add(config.journal_dir, (event.error or str(event.kind) for event in events))
    except OSError as error:
        log.plain().warning("%s: failures are not counted: %s", config.journal_dir, error)
    # They go first: a program that ends us must not be told again and again.
    for file in files:
        file.unlink(missing_ok=True)
    told = programs.of(Path(config.notify))
    for number, event in enumerate(events):
        if told and time.monotonic() > until_s:
            log.plain().warning(
                "%d more failures are told to nobody: the programs in %s take too long",
                len(events) - number,
                config.notify,
            )
            return
        for path, why in programs.tell(told, event).items():
            log.plain().warning("%s: %s", path, why)


def _pending(config: Config) -> list[Path]:
    """The files of all that waits, the oldest first."""
    directory = config.locks_dir / FOLDER
    with suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
        return [directory / name for name in names]
    return []


def _read(files: list[Path]) -> Iterator[Event]:
    for file in files:
        try:
            yield json_file.decode(file.read_bytes(), Event)
        except (OSError, msgspec.MsgspecError) as error:
            log.failure(log.plain(), error, f"{file}: nobody is told of it")
