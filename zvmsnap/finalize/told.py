"""Lets the administrator's programs hear that a run has failed for a guest (notify/)."""

from __future__ import annotations

from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.notify import event, notices
from zvmsnap.notify.event import Kind


def tell(config: Config, entry: Entry, kind: Kind, cause: str | BaseException) -> None:
    """Of the guest of that entry, when no guest waits any more. Never raises."""
    notices.note(
        config,
        event.of(
            kind,
            cause,
            guest=entry.domain,
            uuid=entry.uuid,
            dataset=",".join(entry.request_datasets),
            level=str(entry.level),
            wanted=str(entry.minimum_level or ""),
        ),
    )
