"""What interrupted backups and imports have left, and who ends it: `zvmsnap recover`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.backup.import_guest import GuestImport
from zvmsnap.backup.of_guest import drop_taken
from zvmsnap.backup.push import take_back
from zvmsnap.backup.work import AnyWork, BackupWork, Works, WorkWriter
from zvmsnap.backup.writing import discard_made
from zvmsnap.config.settings import Config
from zvmsnap.virt.host import Host


@dataclass(frozen=True)
class Interrupted:
    """Work in the journal: of which guest, what it is, whether its process lives, its end."""

    domain: str
    uuid: str
    what: str
    pid: int  # 0: it is dead
    end: Callable[[], None]


def works(config: Config, host: Host) -> tuple[list[Interrupted], list[str]]:
    """All backups and imports of the journal, and what of it cannot be read."""
    found, problems = Works(config).all()
    return list(_each(config, host, found)), problems


def _each(config: Config, host: Host, found: list[AnyWork]) -> Iterator[Interrupted]:
    for work in found:
        if isinstance(work, BackupWork):
            what = f"a backup to {Path(work.making).parent}" if work.making else "a backup"
            end = _ending(config, host, work)
        else:
            what = f"an import of {work.backup} at step {work.step or 'none'}"
            end = GuestImport(config, host, work).end
        pid = work.owner.pid if work.owner.is_alive() else 0
        yield Interrupted(work.domain, work.uuid, what, pid, end)


def _ending(config: Config, host: Host, work: BackupWork) -> Callable[[], None]:
    def end() -> None:
        writer = WorkWriter(config, work)
        take_back(host, writer)
        writer.remove_datasets()
        drop_taken(config, work.snapshots)
        discard_made(work)
        writer.close()

    return end
