"""Log lines for people: to stderr, with guest and dataset, without time under systemd.

Whatever a line quotes, it is one line that may be printed (common/foreign).
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZvmsnapError

_root = logging.getLogger("zvmsnap")


def setup(verbosity: int = 0) -> None:
    """Send log lines to stderr; `verbosity` -1 errors and warnings only, 0 normal, 1 debug.

    Times are written into mail and files only: the journal and a terminal have their own.
    """
    has_clock = "JOURNAL_STREAM" in os.environ or sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        Formatter(
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


class Formatter(logging.Formatter):
    """Makes each line printable; those of a traceback are indented: none looks like ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return foreign.printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {foreign.printable(line)}" for line in lines)


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
