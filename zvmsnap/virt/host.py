"""The connection to libvirt: events and the verbs we use, with errors as our own exceptions.

A thin wrapper: methods carry libvirt's own names where they have one, flags are keyword arguments.
Objects may be used from several threads; each call blocks only its own thread.
"""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from typing import Any

import libvirt

from zvmsnap.common.errors import DomainGone, HypervisorUnreachable
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.libvirt_error import translated

_loop_started = threading.Lock()


class Host:
    """A connection to libvirt with a running event loop; a context manager."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, uri: str) -> Host:
        """Connect to libvirt at `uri`. Raises HypervisorUnreachable."""
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _start_event_loop()
        try:
            return cls(libvirt.open(uri))
        except libvirt.libvirtError as error:
            raise HypervisorUnreachable(
                f"{uri}: {error.get_error_message()}; is libvirt running?"
            ) from error

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def guests(self) -> list[Guest]:
        """All domains, running or not. Raises LibvirtFailed."""
        with translated("listing guests"):
            return [Guest(domain) for domain in self._connection.listAllDomains()]

    def guest(self, uuid: str) -> Guest:
        """The domain of that UUID. Raises DomainGone."""
        with translated(f"looking up {uuid}"):
            return Guest(self._connection.lookupByUUIDString(uuid))

    def find(self, uuid: str) -> Guest | None:
        """The domain of that UUID, None if there is none."""
        try:
            return self.guest(uuid)
        except DomainGone:
            return None

    def define(self, xml: str) -> Guest:
        """Define a domain, or define it anew. Raises LibvirtFailed."""
        with translated("defining"):
            return Guest(self._connection.defineXMLFlags(xml, 0))

    def restore(self, image: str, xml: str | None = None, *, paused: bool = False) -> None:
        """Start the domain of a memory image from it; `xml` is for other paths of its disks.

        Unless `paused` it runs if it ran when it was saved. If it raises LibvirtFailed, the domain
        is off and its definition is unchanged.
        """
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else 0
        with translated(f"loading {image}"):
            self._connection.restoreFlags(image, xml, flags)

    def why_no_machine(self, emulator: str, arch: str, machine: str, kind: str) -> str | None:
        """Why QEMU here cannot be such a machine; None if it can."""
        try:
            self._connection.getDomainCapabilities(emulator, arch, machine, kind, 0)
        except libvirt.libvirtError as error:
            return str(error.get_error_message())
        return None

    def has_cpu(self, emulator: str, arch: str, machine: str, kind: str, cpu_xml: str) -> bool:
        """Can a guest here have that CPU, with all its features? Raises LibvirtFailed."""
        with translated("comparing CPUs"):
            answer = self._connection.compareHypervisorCPU(
                emulator, arch, machine, kind, cpu_xml, 0
            )
        return bool(answer > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE)

    def has_network(self, name: str) -> bool:
        """Does libvirt know that network, and is it up?"""
        try:
            return bool(self._connection.networkLookupByName(name).isActive())
        except libvirt.libvirtError:
            return False

    def start_network(self, xml: str) -> None:
        """Start a network that lasts until it is stopped, or the host is. Raises LibvirtFailed."""
        with translated("starting a network"):
            self._connection.networkCreateXML(xml)

    def stop_network(self, name: str) -> None:
        """Stop a network. Raises LibvirtFailed."""
        with translated(f"stopping network {name}"):
            self._connection.networkLookupByName(name).destroy()

    def volume_path(self, pool: str, volume: str) -> str:
        """The path of a volume of a storage pool. Raises LibvirtFailed."""
        with translated(f"looking up volume {volume} of pool {pool}"):
            storage_pool = self._connection.storagePoolLookupByName(pool)
            return str(storage_pool.storageVolLookupByName(volume).path())

    def versions(self) -> dict[str, str]:
        """Versions of libvirt and QEMU, and the host's CPU: for a RAM image they must fit."""
        with translated("asking for versions"):
            libvirt_version = self._connection.getLibVersion()
            qemu_version = self._connection.getVersion()
            capabilities = ET.fromstring(self._connection.getCapabilities())
        return {
            "libvirt": _dotted(libvirt_version),
            "qemu": _dotted(qemu_version),
            "host_cpu": capabilities.findtext("host/cpu/model", ""),
        }


def _start_event_loop() -> None:
    # libvirt: the loop must exist before the first connection, and must then be run for ever.
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    try:
        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    except RuntimeError:
        _loop_started.release()  # the next connection tries again
        raise


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
