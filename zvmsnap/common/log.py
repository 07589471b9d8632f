"""Log lines for people: to stderr, or to systemd's journal, with guest and dataset.

Whatever a line quotes, it is one line that may be printed (common/foreign).

What leads to the journal goes there as an entry of its own (systemd's "Native Journal Protocol"),
and not through stderr: a hook's stderr is its caller's, so its lines would bear the name of sanoid.
Where that cannot be done, a line goes to stderr, behind its priority (sd-daemon(3)). None goes both
ways.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import IO, Any

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZvmsnapError

_root = logging.getLogger("zvmsnap")
_STREAM = "JOURNAL_STREAM"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_SOCKET = "/run/systemd/journal/socket"
_SEND_WITHIN_S = 1.0
_DAEMON = 3  # the facility, as of what systemd reads from stderr
# Of which the id of each message is made, with its cause.
_NAMESPACE = "40e76eff-6e46-408d-b873-a530350b8ff2"


def setup(verbosity: int = 0) -> None:
    """Send log lines to stderr; `verbosity` -1 errors and warnings only, 0 normal, 1 debug.

    Times are written into mail and files only: the journal and a terminal have their own.
    """
    to_journal = leads_to_journal(sys.stderr)
    has_clock = to_journal or sys.stderr.isatty()
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    kind = JournalFormatter if to_journal else Formatter
    handler.setFormatter(
        kind(
            "zvmsnap: %(levelname)s%(message)s"
            if has_clock
            else "%(asctime)s zvmsnap: %(levelname)s%(message)s",
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    if to_journal:
        handler = _Journal(handler)
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


class _Journal(logging.Handler):
    """Sends each line to the journal; as soon as it does not take one, lines go elsewhere.

    But for one that is too long for it: that goes elsewhere alone.
    """

    def __init__(self, otherwise: logging.Handler) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._takes = True
        self.setFormatter(Formatter("%(levelname)s%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._takes:
            try:
                _send(_fields(record, self.format(record)))
                return
            except OSError as error:
                self._takes = error.errno == errno.EMSGSIZE
            except Exception:
                self.handleError(record)
                return
        self._otherwise.emit(record)


def tell(text: str) -> None:
    """Say at once that something is wrong: for who has no log, and may not wait."""
    if leads_to_journal(sys.stderr):
        with suppress(OSError):
            _send(_head(logging.ERROR, f"error: {text}"))
            return
        text = f"{prefix(logging.ERROR)}zvmsnap: error: {text}"
    else:
        text = f"zvmsnap: error: {text}"
    sys.stderr.write(f"{text}\n")


def _fields(record: logging.LogRecord, message: str) -> dict[str, str]:
    """What the journal keeps of a line: systemd.journal-fields(7), and docs/how-to/watching.md."""
    fields = _head(record.levelno, message)
    if subject := getattr(record, "subject", ""):
        fields["ZVMSNAP_SUBJECT"] = foreign.line(subject)
    if cause := _cause(record):
        fields["ZVMSNAP_CAUSE"] = cause
        fields["MESSAGE_ID"] = message_id(cause)
    return fields


def _head(level: int, message: str) -> dict[str, str]:
    return {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": "zvmsnap",
        "SYSLOG_FACILITY": str(_DAEMON),
        # journald looks up the unit of the sender, which may have ended by then.
        "OBJECT_SYSTEMD_UNIT": _own_unit(),
    }


def _cause(record: logging.LogRecord) -> str:
    """The class of the error that a line tells, "" if it tells none."""
    if cause := getattr(record, "cause", ""):
        return str(cause)
    arguments = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    return next((class_of(each) for each in arguments if isinstance(each, BaseException)), "")


def message_id(cause: str) -> str:
    """The MESSAGE_ID of lines that tell an error of that class."""
    from uuid import UUID, uuid5  # most hooks tell no error

    return uuid5(UUID(_NAMESPACE), cause).hex


def class_of(error: BaseException) -> str:
    """The name of its class; of a step that failed, that of its cause."""
    cause = getattr(error, "cause", None)
    return class_of(cause) if isinstance(cause, BaseException) else type(error).__name__


def _own_unit() -> str:
    """The unit of systemd that this process is of; "" if of none, or that cannot be told."""
    with suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            parts = path.split("/") if controllers in ("", "name=systemd") else ()
            for part in reversed(parts):
                if part.endswith((".service", ".scope")):
                    return part
    return ""


def _send(fields: Mapping[str, str]) -> None:
    """Send one entry to the journal. Raises OSError, also if it is not taken soon."""
    import socket  # most hooks have nothing to say

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.settimeout(_SEND_WITHIN_S)
        journal.sendto(b"".join(_encoded(fields)), _SOCKET)


def _encoded(fields: Mapping[str, str]) -> Iterator[bytes]:
    for name, text in fields.items():
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:  # a traceback
            yield b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
        elif value:
            yield b"%s=%s\n" % (name.encode(), value)


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
        known = self.extra or {}
        about = known.get("about", "")
        named["extra"] = {"subject": known.get("subject", ""), **named.get("extra", {})}
        named.setdefault("stacklevel", 2)
        if args:
            super().log(level, f"%s: {msg}", about, *args, **named)
        else:
            super().log(level, "%s: %s", about, msg, **named)


Logger = logging.LoggerAdapter[logging.Logger]


def about(domain: str, dataset: str) -> Logger:
    """A logger whose lines begin with the guest and the dataset that they are about."""
    return _About(_root, {"about": f"{domain} ({dataset})", "subject": domain})


def plain() -> logging.Logger:
    """The logger for lines that are about no guest."""
    return _root


def failure(logger: Logger | logging.Logger, error: BaseException, doing: str = "") -> None:
    """Log what went wrong, in one line; with a traceback at level debug if nobody foresaw it."""
    about = {"cause": class_of(error)}
    logger.error("%s%s", f"{doing}: " if doing else "", one_line(error), extra=about)


def one_line(error: BaseException) -> str:
    """What went wrong; the traceback is logged at level debug if nobody foresaw it."""
    if isinstance(error, ZvmsnapError | OSError):
        return str(error)
    _root.debug("the traceback of what nobody foresaw", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {foreign.line(str(error))}"
