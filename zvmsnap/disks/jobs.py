"""Jobs that somebody else runs on a guest: they are waited for."""

from __future__ import annotations

import threading

from zvmsnap.common.errors import DomainBusy, DomainLocked
from zvmsnap.common.waiting import wait_until
from zvmsnap.disks.staging import is_overlay
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

_LOOK_EVERY_S = 0.5


def wait_idle(guest: Guest, timeout_s: float, cancelled: threading.Event | None = None) -> None:
    """Wait until nobody else works on the guest. Raises DomainBusy with the work under way."""
    work = ""

    def is_idle() -> bool:
        nonlocal work
        work = _work_of_others(guest)
        return not work

    if not wait_until(is_idle, timeout_s, _LOOK_EVERY_S, cancelled=cancelled):
        raise DomainBusy(f"{guest.name}: {work} is under way since more than {timeout_s:g} s")


def _work_of_others(guest: Guest) -> str:
    if not guest.is_active():
        return ""
    try:
        if guest.has_job():
            return "a job (dump, migration, backup or save)"
    except DomainLocked:
        return "a call that keeps libvirt from answering"
    others = [
        disk.target
        for disk in domain_xml.parse(guest.xml()).disks
        if disk.mirror and not is_overlay(disk.source)
    ]
    return f"a block job on {', '.join(others)}" if others else ""
