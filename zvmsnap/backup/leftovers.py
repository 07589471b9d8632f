"""What interrupted backups and imports have left, and who ends it: `zvmsnap recover`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zvmsnap.backup.import_guest import GuestImport
from zvmsnap.backup.of_guest import drop_taken
from zvmsnap.backup.push import take_back
from zvmsnap.backup.work import AnyWork, BackupWork, ImportWork, Works, WorkWriter
from zvmsnap.backup.writing import discard_made
from zvmsnap.common.lockfile import lock, own_lock
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
        else:
            what = f"an import of {work.backup} at step {work.step or 'none'}"
        pid = work.owner.pid if work.owner.is_alive() else 0
        end = partial(_end, config, host, work)
        yield Interrupted(work.domain, work.uuid, what, pid, end)


def _end(config: Config, host: Host, work: AnyWork) -> None:
    """End it, unless somebody else has done so.

    No hook is at work on its guest while libvirt is asked to end what it has of it, nor does one
    publish the point that was taken for it. Images are removed after that, which may take long.
    """
    intent, limit_s = f"recover {work.domain}", config.limits.lock_timeout_s
    with own_lock(config.locks_dir, f"recover-{work.id}", intent, limit_s):
        with lock(config.locks_dir, work.uuid, intent, limit_s):
            now = Works(config).read(work.id)
            if now is None:
                return
            if isinstance(now, ImportWork):
                GuestImport(config, host, now).end()
                return
            writer = WorkWriter(config, now)
            take_back(host, writer)
            writer.remove_datasets()
            drop_taken(config, now.snapshots)
        discard_made(now)
        writer.close()
