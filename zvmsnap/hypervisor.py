"""The libvirt seam: connection, events and the verbs we use, with errors as our own exceptions.

A thin wrapper: methods carry libvirt's own names where they have one, flags are keyword arguments.
Objects may be used from several threads; each call blocks only its own thread.
"""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import libvirt

from zvmsnap.errors import (
    BlockJobNotReady,
    DomainGone,
    DomainLocked,
    DumpAborted,
    HypervisorUnreachable,
    LibvirtFailed,
)

_CAUSES: dict[int, type[LibvirtFailed]] = {
    libvirt.VIR_ERR_NO_DOMAIN: DomainGone,
    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE: BlockJobNotReady,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: DomainLocked,
    libvirt.VIR_ERR_OPERATION_ABORTED: DumpAborted,
}

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended by its own power management",
}


class Pause(Enum):
    """Why a guest stands still."""

    USER = "somebody's wish"
    IO_ERROR = "an I/O error, as of a full overlay"
    JOB = "a job that ended or died"
    OTHER = "a cause of its own"


_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_USER: Pause.USER,
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: Pause.IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_UNKNOWN: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_SAVE: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_DUMP: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: Pause.JOB,
}

_loop_started = threading.Lock()


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code() or 0
        message = (error.get_error_message() or str(error)).strip()
        raise _CAUSES.get(code, LibvirtFailed)(f"{doing}: {message}", code) from error


class Hypervisor:
    """A connection to libvirt with a running event loop; a context manager."""

    def __init__(self, uri: str) -> None:
        """Connect to `uri`. Raises HypervisorUnreachable."""
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _start_event_loop()
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise HypervisorUnreachable(
                f"{uri}: {error.get_error_message()}; is libvirt running?"
            ) from error

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def guests(self) -> list[Guest]:
        """All domains, running or not. Raises LibvirtFailed."""
        with _translated("listing guests"):
            return [Guest(domain) for domain in self._connection.listAllDomains()]

    def guest(self, uuid: str) -> Guest:
        """The domain of that UUID. Raises DomainGone."""
        with _translated(f"looking up {uuid}"):
            return Guest(self._connection.lookupByUUIDString(uuid))

    def volume_path(self, pool: str, volume: str) -> str:
        """Where the volume of a storage pool lies. Raises LibvirtFailed."""
        with _translated(f"looking up volume {volume} of pool {pool}"):
            found = self._connection.storagePoolLookupByName(pool)
            return str(found.storageVolLookupByName(volume).path())

    def versions(self) -> dict[str, str]:
        """Versions of libvirt and QEMU, and the host's CPU: a RAM image fits only its like."""
        with _translated("asking for versions"):
            libvirt_version = self._connection.getLibVersion()
            qemu_version = self._connection.getVersion()
            capabilities = ET.fromstring(self._connection.getCapabilities())
        return {
            "libvirt": _dotted(libvirt_version),
            "qemu": _dotted(qemu_version),
            "host_cpu": capabilities.findtext("host/cpu/model", ""),
        }


class Guest:
    """One domain. Every method raises DomainGone or another LibvirtFailed."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str:
        """The live definition, or the one that the next start will use."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0
        flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        with self._doing("reading its definition"):
            return str(self._domain.XMLDesc(flags))

    def is_active(self) -> bool:
        """Is there a QEMU process for it?"""
        with self._doing("asking for its state"):
            return bool(self._domain.isActive())

    def is_persistent(self) -> bool:
        """Does its definition outlive its process?"""
        with self._doing("asking for its state"):
            return bool(self._domain.isPersistent())

    def state(self) -> str:
        """`running`, `paused`, `shut off`, ..."""
        with self._doing("asking for its state"):
            return _STATES.get(self._domain.state()[0], "in an unknown state")

    def pause(self) -> Pause | None:
        """Why it stands still, None if it does not."""
        with self._doing("asking for its state"):
            state, reason = self._domain.state()[:2]
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return None
        return _PAUSES.get(reason, Pause.OTHER)

    def define(self, xml: str) -> None:
        """Replace its persistent definition."""
        with self._doing("defining"):
            self._domain.connect().defineXMLFlags(xml, 0)

    def managed_save_xml(self) -> str | None:
        """The definition in its managed save image, None if it has none."""
        with self._doing("reading its managed save image"):
            if not self._domain.hasManagedSaveImage(0):
                return None
            return str(self._domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))

    def managed_save_define(self, xml: str) -> None:
        """Change host-side details, such as paths of disks, in its managed save image."""
        with self._doing("changing its managed save image"):
            self._domain.managedSaveDefineXML(xml, 0)

    def has_job(self) -> bool:
        """Is a migration, backup, save or dump under way?"""
        with self._doing("asking for its job"):
            return bool(self._domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def snapshot_create(self, xml: str) -> None:
        """Take a live, atomic memory and disk snapshot of which libvirt keeps no metadata.

        Blocks until RAM is written and the disks have switched; may be ended by `abort_job`
        from another thread (DumpAborted). libvirt resumes the guest and removes what it made
        when it fails. Without metadata nobody can later load this RAM over newer disks.
        """
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        )
        with self._doing("memory snapshot"):
            self._domain.snapshotCreateXML(xml, flags)

    def abort_job(self) -> None:
        """End the memory dump under way."""
        with self._doing("aborting its dump"):
            self._domain.abortJob()

    def suspend(self) -> None:
        """Stop its CPUs."""
        with self._doing("pausing"):
            self._domain.suspend()

    def resume(self) -> None:
        """Let its CPUs run again."""
        with self._doing("resuming"):
            self._domain.resume()

    def migrate_max_downtime_ms(self) -> int:
        """The pause that QEMU allows itself for the last part of RAM."""
        with self._doing("reading its allowed pause"):
            return int(self._domain.migrateGetMaxDowntime(0))

    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None:
        """Set that pause. It persists in QEMU: whoever raises it puts the old one back."""
        with self._doing("setting its allowed pause"):
            self._domain.migrateSetMaxDowntime(pause_ms, 0)

    def block_commit(self, target: str, base: str) -> None:
        """Start merging what lies above `base` into it.

        Without a base libvirt would commit down to the bottom, into a golden image.
        """
        with self._doing(f"commit of {target}"):
            self._domain.blockCommit(target, base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)

    def block_job_pivot(self, target: str) -> None:
        """Switch disk `target` to its base. Raises BlockJobNotReady: try again."""
        with self._doing(f"pivot of {target}"):
            self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def snapshot_names(self) -> list[str]:
        """Names of the snapshots of which libvirt keeps metadata."""
        with self._doing("listing its snapshots"):
            return [snapshot.getName() for snapshot in self._domain.listAllSnapshots()]

    def snapshot_delete_metadata(self, name: str) -> None:
        """Make libvirt forget a snapshot, without touching any disk or image."""
        with self._doing(f"forgetting snapshot {name}"):
            snapshot = self._domain.snapshotLookupByName(name)
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    @contextmanager
    def pauses(self) -> Iterator[Callable[[], float]]:
        """Measures how long the guest stands still: yields a function for the seconds so far."""
        clock = _PauseClock()
        with self._events(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, clock.on_lifecycle):
            yield clock.seconds

    @contextmanager
    def block_job_events(self) -> Iterator[threading.Event]:
        """An event that is set whenever a block job of this guest changes its state."""
        changed = threading.Event()

        def on_block_job(*_arguments: object) -> None:
            changed.set()

        with self._events(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, on_block_job):
            yield changed

    @contextmanager
    def _events(self, kind: int, callback: Callable[..., None]) -> Iterator[None]:
        connection = self._domain.connect()
        with self._doing("registering for events"):
            handle = connection.domainEventRegisterAny(self._domain, kind, callback, None)
        try:
            yield
        finally:
            with self._doing("leaving events"):
                connection.domainEventDeregisterAny(handle)

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with _translated(f"{self.name}: {what}"):
            yield


class _PauseClock:
    """Adds up the time between SUSPENDED and RESUMED events."""

    # Events come through the loop's thread, a little after the call that caused them returned.
    _LATE_EVENT_S = 1.0

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._total_s = 0.0
        self._since_s: float | None = None
        self._pauses = 0

    def on_lifecycle(
        self, _connection: Any, _domain: Any, event: int, _detail: int, _opaque: Any
    ) -> None:
        now_s = time.monotonic()
        with self._changed:
            if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and self._since_s is None:
                self._since_s = now_s
            elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._since_s is not None:
                self._total_s += now_s - self._since_s
                self._since_s = None
                self._pauses += 1
            self._changed.notify_all()

    def seconds(self) -> float:
        """Seconds paused so far; waits a moment for the event that ends the pause."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pauses > 0 and self._since_s is None, self._LATE_EVENT_S
            )
            return self._total_s


def _start_event_loop() -> None:
    # libvirt: the loop must exist before the first connection, and must then be run for ever.
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
