"""Runs in the lab, as a process of its own: what libvirt tells of guests, a line of JSON each.

It knows nothing of hooks, and no hook knows of it: by its clock it is said how long guests stand
still, and when the last of their overlays is merged.
"""

from __future__ import annotations

import json
import time

import libvirt

LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
}
BLOCK_JOB = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED: "merged",
    libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED: "merge failed",
}


def tell(domain: libvirt.virDomain, event: str | None) -> None:
    """Print it, with the time of now."""
    if event is not None:
        said = {"at_s": time.time(), "guest": domain.name(), "event": event}
        print(json.dumps(said), flush=True)


def lifecycle(
    _connection: object, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object
) -> None:
    """A guest was paused, or goes on."""
    tell(domain, LIFECYCLE.get(event))


def block_job(
    _connection: object,
    domain: libvirt.virDomain,
    _disk: str,
    _kind: int,
    status: int,
    _opaque: object,
) -> None:
    """An overlay was merged."""
    tell(domain, BLOCK_JOB.get(status))


def main() -> None:
    """Listen until killed."""
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open("qemu:///system")
    for event_id, heard in (
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
        (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, block_job),
    ):
        connection.domainEventRegisterAny(None, event_id, heard, None)
    print(json.dumps({"at_s": time.time(), "guest": "", "event": "listening"}), flush=True)
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main()
