"""libvirt's backup job of a guest, which has been begun: it is awaited, shown, and ended."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from zvmsnap.common.errors import (
    BackupFailed,
    ConnectionLost,
    DomainGone,
    DomainLocked,
    LibvirtFailed,
    NoAnswer,
)
from zvmsnap.common.waiting import sleep, wait_until
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

# libvirt has not refused what was asked for: nothing is known of it, or there is no guest.
NO_REFUSALS = (DomainGone, DomainLocked, NoAnswer, ConnectionLost)
_BACKUP = "backup"  # as a guest's job_kind
_LOOK_EVERY_S = 0.5
_ENDS_WITHIN_S = 60


def await_end(host: Host, guest: Guest) -> None:
    """Wait until it has done all. Raises BackupFailed if it, or the guest, has ended otherwise."""
    gone = f"{guest.name}: was shut off, or has crashed, while it was backed up"
    try:
        while guest.is_active() and _about(host, guest):
            sleep(_LOOK_EVERY_S)
        if not guest.is_active():
            raise BackupFailed(gone)
        if why := host.why_backup_failed(guest.uuid):
            raise BackupFailed(f"{guest.name}: its backup job did not end well: {why}")
    except DomainGone as error:
        raise BackupFailed(gone) from error
    except ConnectionLost as error:
        raise BackupFailed(
            f"{guest.name}: libvirt was ended while it was backed up: back it up once more: {error}"
        ) from error


def how_far(guest: Guest, targets: Iterable[str]) -> str:
    """How much of each disk is written, in one line."""
    parts = []
    for target in targets:
        with suppress(LibvirtFailed):  # it has just ended
            if job := guest.block_job(target):
                parts.append(f"{target} {100 * job.done_bytes // max(1, job.total_bytes)} %")
    return f"{guest.name}: pushed: {', '.join(parts) or 'all'}"


def end(host: Host, guest: Guest, folder: str) -> None:
    """End the job if it writes into this directory. Raises LibvirtFailed, also if it goes on.

    One that is about to begin is waited for: its caller may have died meanwhile.
    """

    def is_there() -> bool:
        try:
            return guest.is_active() and f"{folder}/" in _about(host, guest)
        except DomainGone:
            return False

    def has_begun() -> bool:
        try:
            is_asked = guest.is_active() and not _about(host, guest)
            return not (is_asked and guest.job_kind() == _BACKUP)
        except DomainGone:
            return True

    if not wait_until(has_begun, _ENDS_WITHIN_S, _LOOK_EVERY_S):
        raise LibvirtFailed(f"{guest.name}: its backup job does not begin")
    if not is_there():
        return
    try:
        guest.abort_job()
    except LibvirtFailed:
        if is_there():
            raise
    if not wait_until(lambda: not is_there(), _ENDS_WITHIN_S, _LOOK_EVERY_S):
        raise LibvirtFailed(f"{guest.name}: its backup job does not end")


def _about(host: Host, guest: Guest) -> str:
    """What the backup job under way is about; "" if there is none. Raises what tells nothing."""
    try:
        return host.backup_xml(guest.uuid)
    except NO_REFUSALS:
        raise
    except LibvirtFailed:
        return ""
