"""What was sent last: one file for each destination and guest, in the journal directory.

`zvmsnap status` reads them. It asks no destination, so it also works when one cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.safe_files import private_dir
from zvmsnap.points.point import is_time
from zvmsnap.points.vault import folder_of

SCHEMA = 2
_FOLDER = "send-status"

# After so many days without a new point a destination may be one that will not come back.
_SILENT_DAYS = 7


class SentDataset(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset: the newest snapshot that both sides have, and what this run has sent of it.

    `stream_bytes` is what ZFS estimated before, without compression on the way.
    """

    dataset: str
    target: str
    newest: str
    guid: int
    stream_bytes: int
    seconds: float


class SendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One guest at one destination, after a send; `newest` is its last complete point there.

    `plain` are points there that are not encrypted, though what is sent there now is.

    `last_attempt` and `error` are of the last send, whatever came of it.
    """

    schema: int = SCHEMA
    destination: str
    domain: str
    uuid: str
    last_attempt: str
    error: str = ""
    seconds: float = 0.0
    datasets: tuple[SentDataset, ...] = ()
    points: tuple[str, ...] = ()
    points_bytes: int = 0
    newest: str = ""
    newest_created: str = ""
    newest_has_memory: bool = False
    plain: tuple[str, ...] = ()


def write(journal: Path, status: SendStatus) -> None:
    """Replace the status of that guest at that destination. Raises OSError.

    A status of another schema is kept, and the log says so.
    """
    path = _path(journal, status.destination, status.uuid)
    try:
        _read(path)
    except json_file.OtherSchema as error:
        _warn_of_other_schema(error)
        return
    except (FileNotFoundError, json_file.Unreadable):
        pass
    private_dir(path.parent)
    json_file.write(path, status)


def write_failure(journal: Path, destination: str, domain: str, uuid: str, error: str) -> None:
    """Note that nothing could be sent; keep what was noted of the send before. Raises OSError."""
    try:
        status = _read(_path(journal, destination, uuid))
    except (FileNotFoundError, json_file.Unreadable):
        status = SendStatus(destination=destination, domain=domain, uuid=uuid, last_attempt="")
    write(journal, msgspec.structs.replace(status, last_attempt=now(), error=error))


def read_all(journal: Path) -> tuple[list[SendStatus], list[Path]]:
    """All statuses, by guest and destination; and those that cannot be read, which are logged."""
    statuses, unreadable = [], []
    for path in sorted((journal / _FOLDER).glob("*/*.json")):
        try:
            statuses.append(_read(path))
        except FileNotFoundError:
            continue  # it was removed since it was listed
        except json_file.OtherSchema as error:
            _warn_of_other_schema(error)
            unreadable.append(path)
        except json_file.Unreadable as error:
            log.plain().warning("%s; remove it, and send again", error)
            unreadable.append(path)
    return sorted(statuses, key=lambda each: (each.domain, each.destination)), unreadable


def forget(journal: Path, destination: str) -> int:
    """Remove all statuses of a destination: so many. Raises OSError."""
    paths = list((journal / _FOLDER / folder_of(destination)).glob("*.json"))
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def silent(statuses: Iterable[SendStatus], now: datetime) -> dict[str, str]:
    """Destinations that have had no new point for long, and when the newest of each was made."""
    newest: dict[str, str] = {}
    for each in statuses:
        known = newest.get(each.destination)
        if each.newest_created and (not known or _time(each.newest_created) > _time(known)):
            newest[each.destination] = each.newest_created
    limit = now - timedelta(days=_SILENT_DAYS)
    return {name: created for name, created in newest.items() if _time(created) < limit}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def now() -> str:
    """The time, as `last_attempt` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(journal: Path, destination: str, uuid: str) -> Path:
    return journal / _FOLDER / folder_of(destination) / f"{uuid}.json"


def _read(path: Path) -> SendStatus:
    status = json_file.read(path, SendStatus, SCHEMA)
    times = (status.last_attempt, status.newest_created)
    if not all(is_time(text) for text in times if text):
        raise json_file.Damaged(path, "has a time that is none")
    return status


def _warn_of_other_schema(error: json_file.OtherSchema) -> None:
    log.plain().warning(
        "%s; it was kept. Remove it, so that this version can note its sends",
        error,
    )
