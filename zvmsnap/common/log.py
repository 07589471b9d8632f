"""Log lines for people: to stderr, with guest and dataset; to systemd's journal with a priority.

Whatever a line quotes, it is one line that may be printed (common/foreign).
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import IO, Any

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZvmsnapError

_root = logging.getLogger("zvmsnap")
_STREAM = "JOURNAL_STREAM"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


def setup(verbosity: int = 0) -> None:
    """Send log lines to stderr; `verbosity` -1 errors and warnings only, 0 normal, 1 debug.

    Times are written into mail and files only: the journal and a terminal have their own. The
    journal takes the priority of a line from its beginning (sd-daemon(3)).
    """
    to_journal = leads_to_journal(sys.stderr)
    has_clock = to_journal or sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    kind = JournalFormatter if to_journal else Formatter
    handler.setFormatter(
        kind(
            "zvmsnap: %(levelname)s%(message)s"
            if has_clock
            else "%(asctime)s zvmsnap: %(levelname)s%(message)s",
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    for level, word in (
        (logging.DEBUG, "debug: "),
        (logging.INFO, ""),
        (logging.WARNING, "warning: "),
        (logging.ERROR, "error: "),
    ):
        logging.addLevelName(level, word)
    _root.handlers[:] = [handler]
    levels = {-1: logging.WARNING, 0: logging.INFO}
    _root.setLevel(levels.get(verbosity, logging.DEBUG))


def leads_to_journal(stream: IO[str] | int) -> bool:
    """Does what is written there go to systemd's journal? By systemd.exec(5), and the kernel."""
    try:
        status = os.fstat(stream if isinstance(stream, int) else stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get(_STREAM) == f"{status.st_dev}:{status.st_ino}"


def also_leads_to_journal(descriptor: int) -> None:
    """What is written there is passed on to the journal."""
    status = os.fstat(descriptor)
    os.environ[_STREAM] = f"{status.st_dev}:{status.st_ino}"


def prefix(level: int) -> str:
    """What a line for the journal begins with, by syslog(3): err, warning, info, debug."""
    return f"<{_PRIORITIES[level]}>"


class Formatter(logging.Formatter):
    """Makes each line printable; those of a traceback are indented: none looks like ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return foreign.printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {foreign.printable(line)}" for line in lines)


class JournalFormatter(Formatter):
    """The same, each line with its priority."""

    def format(self, record: logging.LogRecord) -> str:
        before = prefix(record.levelno)
        return "\n".join(f"{before}{line}" for line in super().format(record).split("\n"))


class _About(logging.LoggerAdapter[logging.Logger]):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **named: Any) -> None:
        # By an argument of its own: a name may have a percent sign.
        about = self.extra["about"] if self.extra else ""
        named.setdefault("stacklevel", 2)
        if args:
            super().log(level, f"%s: {msg}", about, *args, **named)
        else:
            super().log(level, "%s: %s", about, msg, **named)


Logger = logging.LoggerAdapter[logging.Logger]


def about(domain: str, dataset: str) -> Logger:
    """A logger whose lines begin with the guest and the dataset that they are about."""
    return _About(_root, {"about": f"{domain} ({dataset})"})


def plain() -> logging.Logger:
    """The logger for lines that are about no guest."""
    return _root


def failure(logger: Logger | logging.Logger, error: BaseException, doing: str = "") -> None:
    """Log what went wrong, in one line; with a traceback at level debug if nobody foresaw it."""
    logger.error("%s%s", f"{doing}: " if doing else "", one_line(error))


def one_line(error: BaseException) -> str:
    """What went wrong; the traceback is logged at level debug if nobody foresaw it."""
    if isinstance(error, ZvmsnapError | OSError):
        return str(error)
    _root.debug("the traceback of what nobody foresaw", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {foreign.line(str(error))}"
