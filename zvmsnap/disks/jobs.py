"""Jobs that somebody else runs on a guest: they are waited for."""

from __future__ import annotations

import threading
import time

from zvmsnap.common.errors import DomainBusy, DomainLocked
from zvmsnap.disks.staging import is_overlay
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

_LOOK_EVERY_S = 0.5


def wait_idle(guest: Guest, timeout_s: float, cancelled: threading.Event | None = None) -> None:
    """Wait until nobody else works on the guest. Raises DomainBusy with what it still does."""
    deadline_s = time.monotonic() + timeout_s
    while why := _busy_with(guest):
        if time.monotonic() > deadline_s or (cancelled and cancelled.is_set()):
            raise DomainBusy(f"{guest.name}: {why} is under way since more than {timeout_s:g} s")
        time.sleep(_LOOK_EVERY_S)


def _busy_with(guest: Guest) -> str:
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
