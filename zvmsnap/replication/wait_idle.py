"""Sending takes turns with the hooks: nothing is sent of a guest in the middle of a moment.

The guest's own lock is held only to look, not while bytes flow: a snapshot, once taken, does not
change, and a first send that takes hours must not cost hours of points.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, SendRefused
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, overlay_chain
from zvmsnap.journal import describe
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts

_LOOK_EVERY_S = 1.0


def guests_on(hypervisor: Host, datasets: Iterable[str]) -> list[Guest]:
    """The guests with a disk on one of these datasets. Raises LibvirtFailed."""
    wanted, table = frozenset(datasets), mounts.read_table()
    found = []
    for guest in hypervisor.guests():
        try:
            places = location.locate_disks(hypervisor, guest, table).places.values()
        except DomainGone:
            continue
        if any(place.dataset in wanted for place in places):
            found.append(guest)
    return found


def wait(config: Config, guests: Iterable[Guest]) -> None:
    """Wait until all are on their own disks. Raises SendRefused after busy_timeout_s."""
    deadline_s = time.monotonic() + config.limits.busy_timeout_s
    for guest in guests:
        while why := _why_not(config, guest):
            if time.monotonic() > deadline_s:
                raise SendRefused(
                    f"{guest.name}: {why}; zvmsnap recover {guest.name} brings it back"
                )
            log.about(guest.name, "send").debug("waiting: %s", why)
            time.sleep(_LOOK_EVERY_S)


def _why_not(config: Config, guest: Guest) -> str:
    with lock(config.locks_dir, guest.uuid, "send its disks", config.limits.lock_timeout_s):
        entry = Journal(config.journal_dir).read(guest.uuid)
        if entry and entry.owner.is_alive():
            return f"its moment {entry.run} is under way"
        if task := Operations(config.journal_dir).read(guest.uuid):
            return describe.task(task)
        with suppress(DomainGone):
            if ours := overlay_chain.of_guest(guest):
                return f"its disk {min(ours)} is on an overlay"
    return ""
