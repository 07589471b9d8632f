"""The connection to libvirt: events and the verbs we use, with errors as our own exceptions.

A thin wrapper: methods carry libvirt's own names where they have one, flags are keyword arguments.
Objects may be used from several threads; each call blocks only its own thread, and none without end
(virt/connection).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt

from zvmsnap.common import foreign
from zvmsnap.common.errors import DomainGone, GivenUp, LibvirtFailed
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.connection import Connection, Domain, translated, volume_path
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.qemu_process import STUCK_S, LoadWatch

_LOOK_EVERY_S = 2.0

# What a <secret> of that type is looked up for, if it has no UUID.
_SECRET_USES = {
    "passphrase": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
    "ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH,
    "iscsi": libvirt.VIR_SECRET_USAGE_TYPE_ISCSI,
}


class Host:
    """A connection to libvirt with a running event loop; a context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, uri: str) -> Host:
        """Connect to libvirt at `uri`. Raises HypervisorUnreachable."""
        connection = Connection(uri)
        connection.open()
        return cls(connection)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def guests(self) -> list[Guest]:
        """All domains, running or not. Raises LibvirtFailed."""
        with translated("listing guests"):
            named = self._connection.do(
                lambda opened: [_named(domain) for domain in opened.listAllDomains()]
            )
        return [Guest(Domain(self._connection, uuid), name, uuid) for name, uuid in named]

    def guest(self, uuid: str) -> Guest:
        """The domain of that UUID. Raises DomainGone."""
        with translated(f"looking up {uuid}"):
            name = self._connection.do(lambda opened: opened.lookupByUUIDString(uuid).name())
        return Guest(Domain(self._connection, uuid), name, uuid)

    def find(self, uuid: str) -> Guest | None:
        """The domain of that UUID, None if there is none."""
        try:
            return self.guest(uuid)
        except DomainGone:
            return None

    def define(self, xml: str) -> Guest:
        """Define a domain, or define it anew. Raises LibvirtFailed."""
        with translated("defining"):
            name, uuid = self._connection.do(lambda opened: _named(opened.defineXMLFlags(xml, 0)))
        return Guest(Domain(self._connection, uuid), name, uuid)

    def restore(self, image: str, xml: str | None = None, *, paused: bool = False) -> None:
        """Start the domain of a memory image from it; `xml` is for other paths of its disks.

        Unless `paused` it runs if it ran when it was saved. If it raises LibvirtFailed, the domain
        is off and its definition is unchanged; but if it raises NoAnswer, as the load does not go
        on, there may be a QEMU. Raises ImageUnloadable.
        """
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else 0
        domain = domain_xml.parse(save_image.xml_of(Path(image)))
        watch = LoadWatch(domain.name, domain.uuid)
        with translated(f"loading {image}"):
            begun = self._connection.begin(lambda opened: opened.restoreFlags(image, xml, flags))
            while not begun.ended(_LOOK_EVERY_S):
                if watch.is_stuck():
                    self._connection.forget()
                    raise GivenUp(
                        f"given up: QEMU has neither read nor worked for {STUCK_S:g} s; is it "
                        "stopped, or a pool suspended? zpool status -x"
                    )
            begun.answer()

    def begin_backup(self, uuid: str, xml: str, checkpoint_xml: str | None = None) -> None:
        """Let QEMU write disks of a running guest into files, as of now; a job does it.

        With `checkpoint_xml` libvirt makes that checkpoint at the same instant. If it refuses,
        nothing is left of either. Raises LibvirtFailed.
        """
        with translated("beginning a backup"):
            self._connection.do(
                lambda opened: opened.lookupByUUIDString(uuid).backupBegin(xml, checkpoint_xml, 0)
            )

    def backup_xml(self, uuid: str) -> str:
        """What the backup job under way is about. Raises LibvirtFailed, also if there is none."""
        with translated("asking for a backup"):
            return str(
                self._connection.do(
                    lambda opened: opened.lookupByUUIDString(uuid).backupGetXMLDesc(0)
                )
            )

    def why_backup_failed(self, uuid: str) -> str:
        """Why the last job of a guest, a backup, did not end well; "" if it did.

        Raises LibvirtFailed.
        """
        completed = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED
        with translated("asking how a backup has ended"):
            stats = self._connection.do(
                lambda opened: opened.lookupByUUIDString(uuid).jobStats(completed)
            )
        if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            return "libvirt does not know any more: was it started again?"
        if stats.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED:
            return ""
        return foreign.line(str(stats.get("errmsg", "it was ended")))

    def why_no_machine(self, emulator: str, arch: str, machine: str, kind: str) -> str | None:
        """Why QEMU here cannot be such a machine; None if it can."""
        try:
            self._connection.do(
                lambda opened: opened.getDomainCapabilities(emulator, arch, machine, kind, 0)
            )
        except libvirt.libvirtError as error:
            return str(error.get_error_message())
        return None

    def has_cpu(self, emulator: str, arch: str, machine: str, kind: str, cpu_xml: str) -> bool:
        """Can a guest here have that CPU, with all its features? Raises LibvirtFailed."""
        with translated("comparing CPUs"):
            answer = self._connection.do(
                lambda opened: opened.compareHypervisorCPU(
                    emulator, arch, machine, kind, cpu_xml, 0
                )
            )
        return bool(answer > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE)

    def why_no_secret(self, uuid: str, kind: str = "", usage: str = "") -> str | None:
        """Why a guest would not get this secret; None if it would, as far as can be asked.

        It is known by its UUID, or by what it is used for: an element's `kind` and `usage`. Its
        value is not kept; of a private secret nobody is told whether it has one.
        """
        use = _SECRET_USES.get(kind, libvirt.VIR_SECRET_USAGE_TYPE_NONE)
        try:
            self._connection.do(
                lambda opened: (
                    opened.secretLookupByUUIDString(uuid)
                    if uuid
                    else opened.secretLookupByUsage(use, usage)
                ).value(0)
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_SECRET:  # it is private
                return str(error.get_error_message())
        return None

    def has_network(self, name: str) -> bool:
        """Does libvirt know that network, and is it up?"""
        try:
            with translated(f"looking up network {name}"):
                return bool(
                    self._connection.do(lambda opened: opened.networkLookupByName(name).isActive())
                )
        except LibvirtFailed:
            return False

    def start_network(self, xml: str) -> None:
        """Start a network that lasts until it is stopped, or the host is. Raises LibvirtFailed."""
        with translated("starting a network"):
            self._connection.do(lambda opened: opened.networkCreateXML(xml))

    def stop_network(self, name: str) -> None:
        """Stop a network. Raises LibvirtFailed."""
        with translated(f"stopping network {name}"):
            self._connection.do(lambda opened: opened.networkLookupByName(name).destroy())

    def volume_path(self, pool: str, volume: str) -> str:
        """The path of a volume of a storage pool. Raises LibvirtFailed."""
        with translated(f"looking up volume {volume} of pool {pool}"):
            return self._connection.do(lambda opened: volume_path(opened, pool, volume))

    def versions(self) -> dict[str, str]:
        """Versions of libvirt and QEMU, and the host's CPU: for a RAM image they must fit."""
        with translated("asking for versions"):
            libvirt_version, qemu_version, xml = self._connection.do(
                lambda opened: (
                    opened.getLibVersion(),
                    opened.getVersion(),
                    opened.getCapabilities(),
                )
            )
        capabilities = ET.fromstring(xml)
        return {
            "libvirt": _dotted(libvirt_version),
            "qemu": _dotted(qemu_version),
            "host_cpu": capabilities.findtext("host/cpu/model", ""),
        }


def _named(domain: Any) -> tuple[str, str]:
    return domain.name(), domain.UUIDString()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
