"""Jobs that somebody else runs on a guest: they are waited for."""

from __future__ import annotations

import threading

from zvmsnap.common.errors import DomainBusy, DomainLocked
from zvmsnap.common.waiting import wait_until
from zvmsnap.disks.staging import is_overlay
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

ACTIVE_COMMIT = "active-commit"

_LOOK_EVERY_S = 0.5


def wait_idle(guest: Guest, timeout_s: float, cancelled: threading.Event | None = None) -> None:
    """Wait until nobody else works on the guest. Raises DomainBusy with the work under way."""
    work = ""

    def is_idle() -> bool:
        nonlocal work
        work = work_of_others(guest)
        return not work

    if not wait_until(is_idle, timeout_s, _LOOK_EVERY_S, cancelled=cancelled):
        raise DomainBusy(f"{guest.name}: {work} is under way since more than {timeout_s:g} s")


def work_of_others(guest: Guest) -> str:
    """What somebody else does with the guest now, and with which disks; "" if nothing.

    A dump of zvmsnap whose caller was killed is somebody else's, too.
    """
    if not guest.is_active():
        return ""
    try:
        if guest.has_job():
            return _job(guest)
    except DomainLocked:
        return "a call that keeps libvirt from answering"
    others = {
        disk.target: disk.mirror_job
        for disk in domain_xml.parse(guest.xml()).disks
        if disk.mirror and not (is_overlay(disk.source) and disk.mirror_job == ACTIVE_COMMIT)
    }
    kinds = ", ".join(dict.fromkeys(others.values()))
    return f"a block job ({kinds}) on {', '.join(others)}" if others else ""


def _job(guest: Guest) -> str:
    kind = guest.job_kind()
    if kind != "backup":
        return f"a job ({kind or 'dump, migration, backup or save'})"
    disks = [disk.target for disk in domain_xml.parse(guest.xml()).disks]
    on = ", ".join(filter(guest.has_block_job, disks))
    return f"a job (backup) on {on}" if on else "a job (backup)"
