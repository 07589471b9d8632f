"""Waits until no guest with disks on a dataset is in a run, so that hooks and sends take turns.

The guest's lock is held only to look, not while bytes are sent: a snapshot does not change, and a
first send that takes hours must not cost hours of points.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from zvmsnap.common import log, waiting
from zvmsnap.common.errors import DomainGone, LockTimeout, SendRefused
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, overlay_chain
from zvmsnap.journal import describe, other_versions
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts

_POLL_S = 1.0


def guests_on(host: Host, datasets: Iterable[str]) -> list[Guest]:
    """The guests with a disk on one of these datasets. Raises LibvirtFailed."""
    wanted, table = frozenset(datasets), mounts.read_table()
    guests = []
    for guest in host.guests():
        try:
            places = location.locate_disks(host, guest, table).places
        except DomainGone:
            continue
        if any(place.dataset in wanted for _, place in places):
            guests.append(guest)
    return guests


def wait(settings: Config, guests: Iterable[Guest]) -> None:
    """Wait until all are on their own disks. Raises SendRefused after busy_timeout_s."""
    deadline_s = waiting.now_s() + settings.limits.busy_timeout_s
    for guest in guests:
        while reason := _why_busy(settings, guest):
            if waiting.now_s() > deadline_s:
                raise SendRefused(
                    f"{guest.name}: {reason}; zvmsnap recover {guest.name} brings it back"
                )
            log.about(guest.name, "send").debug("waiting: %s", reason)
            waiting.sleep(_POLL_S)


def _why_busy(settings: Config, guest: Guest) -> str:
    """Why nothing of the guest may be sent now; "" if it may."""
    try:
        return _why_busy_now(settings, guest)
    except LockTimeout as error:
        # A hook that dumps much RAM holds it for minutes.
        return str(error)


def _why_busy_now(settings: Config, guest: Guest) -> str:
    timeout_s = settings.limits.lock_timeout_s
    with lock(settings.locks_dir, guest.uuid, "send its disks", timeout_s):
        entry = Journal(settings.journal_dir).read(guest.uuid)
        if entry and entry.owner.is_alive():
            return f"{describe.work(entry)} is under way"
        if operation := Operations(settings.journal_dir).read(guest.uuid):
            return describe.operation(operation)
        for file in other_versions.files(settings.journal_dir):
            if file.uuid == guest.uuid and (file.is_operation or file.owner.is_alive()):
                return str(file)
        with suppress(DomainGone):
            if chains := overlay_chain.of_guest(guest):
                return f"its disk {min(chains)} is on an overlay"
    return ""
