"""What was sent last, where: one file per destination and guest, in the state directory.

`zvmsnap status` reads them: no destination is asked, so it also tells when one cannot be reached.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from zvmsnap.common import log
from zvmsnap.common.atomic_file import private_dir, write_atomic
from zvmsnap.config.destination import Destination
from zvmsnap.points.point import is_time
from zvmsnap.points.vault import folder_of

SCHEMA = 2
_FOLDER = "send-status"


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

    `tried` and `failed` are of the last run, whatever came of it.
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


def keep(journal: Path, destination: Destination, receipt: SendStatus) -> None:
    """Write it down, in place of the former one. Raises OSError."""
    directory = private_dir(journal / _FOLDER / folder_of(destination.name))
    data = msgspec.json.format(msgspec.json.encode(receipt)) + b"\n"
    write_atomic(directory / f"{receipt.uuid}.json", data)


def keep_failure(journal: Path, destination: Destination, domain: str, uuid: str, why: str) -> None:
    """Write down that nothing could be sent; what was sent before stands. Raises OSError."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    former = next(
        (
            receipt
            for receipt in read(journal)
            if (receipt.destination, receipt.uuid) == (destination.name, uuid)
        ),
        SendStatus(destination=destination.name, domain=domain, uuid=uuid, last_attempt=now),
    )
    keep(journal, destination, msgspec.structs.replace(former, last_attempt=now, error=why))


def read(journal: Path) -> list[SendStatus]:
    """All receipts, by guest and destination; what cannot be read is told of, and left out."""
    found = []
    for path in sorted((journal / _FOLDER).glob("*/*.json")):
        try:
            receipt = msgspec.json.decode(path.read_bytes(), type=SendStatus)
            if not all(is_time(t) for t in (receipt.last_attempt, receipt.newest_created) if t):
                raise msgspec.ValidationError("a time in it is none")
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.plain().warning("%s: cannot be read: %s; remove it, and send again", path, error)
            continue
        found.append(receipt)
    return sorted(found, key=lambda receipt: (receipt.domain, receipt.destination))
