"""Something that failed, as programs of the administrator hear of it: docs/how-to/watching.md."""

from __future__ import annotations

import os
from datetime import datetime
from enum import StrEnum

import msgspec

from zvmsnap.common import foreign, log

SCHEMA = 1
_TEXT_MAX = 2000


class Kind(StrEnum):
    """What it is about."""

    NO_POINT = "no-point"  # the guest got no point
    LEVEL = "level"  # its point is of less than what is wanted
    UNFINISHED = "unfinished"  # the guest may be on its overlays, or its point waits
    HOOK = "hook"  # a hook as a whole
    SEND = "send"
    VERIFY = "verify"
    OTHER = "other"  # what `zvmsnap notify` was told


_TO_DO = {
    Kind.NO_POINT: "mend the cause; the next snapshot makes a point",
    Kind.LEVEL: "mend the cause, or say with zvmsnap:mode that less is enough",
    Kind.UNFINISHED: "zvmsnap recover",
    Kind.HOOK: "journalctl -t zvmsnap -p err; zvmsnap recover --dry-run",
    Kind.SEND: "zvmsnap status; the next zvmsnap send goes on",
    Kind.VERIFY: "zvmsnap list; restore no such point",
    Kind.OTHER: "journalctl -t zvmsnap -p err",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One failure. `error` is the name of its class, by which failures are counted.

    `level` is what was reached, `wanted` the mode that asks for more; each text is "" if there is
    nothing to say.
    """

    schema: int = SCHEMA
    time: str
    host: str
    kind: Kind
    guest: str = ""
    uuid: str = ""
    dataset: str = ""
    level: str = ""
    wanted: str = ""
    error: str = ""
    cause: str = ""
    what_to_do: str = ""
    text: str = ""


def of(kind: Kind, cause: str | BaseException, **fields: str) -> Event:
    """An event of now; `fields` are those of Event that are not derived."""
    if isinstance(cause, BaseException):
        fields = {"error": log.class_of(cause), **fields}
        cause = log.one_line(cause)
    said = foreign.line(cause, _TEXT_MAX)
    about = " ".join(filter(None, (fields.get("guest"), _in_brackets(fields.get("dataset", "")))))
    told = Event(
        time=datetime.now().astimezone().isoformat(timespec="seconds"),
        host=os.uname().nodename,
        kind=kind,
        cause=said,
        what_to_do=_TO_DO[kind],
        text=f"{about}: {said}" if about else said,
    )
    return msgspec.structs.replace(told, **fields)


def _in_brackets(text: str) -> str:
    return f"({text})" if text else ""
