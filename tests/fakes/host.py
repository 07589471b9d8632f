"""A host, faked: a connection to libvirt that knows some FakeGuests."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from zvmsnap.common.errors import DomainGone, HypervisorUnreachable
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


class FakeHost(Host):
    """A host with these guests."""

    def __init__(self, *guests: FakeGuest) -> None:
        self.known = list(guests)
        self.reachable = True
        self.networks: list[str] = []
        self.no_machine: str | None = None
        self.no_secret: str | None = None
        self.any_cpu = True

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let all that connect to libvirt get this host."""
        patch.setattr(Host, "connect", self.reached)

    def reached(self, uri: str) -> "FakeHost":
        """In place of Host.connect."""
        if not self.reachable:
            raise HypervisorUnreachable(f"{uri}: no")
        return self

    def __exit__(self, *_exception: object) -> None:
        return

    def guests(self) -> list[Guest]:
        return [guest for guest in self.known if guest.exists]

    def guest(self, uuid: str) -> Guest:
        for guest in self.guests():
            if guest.uuid == uuid:
                return guest
        raise DomainGone(f"looking up {uuid}: no such domain", 42)

    def define(self, xml: str) -> Guest:
        guest = self._guest_of(xml)
        guest.define(xml)
        return self._known(guest)

    def restore(self, image: str, xml: str | None = None, *, paused: bool = False) -> None:
        stored = save_image.xml_of(Path(image))
        guest = self._guest_of(stored)
        guest.load(Path(image), xml, paused=paused)
        self._known(guest)

    def _known(self, guest: FakeGuest) -> FakeGuest:
        if guest not in self.known:
            self.known.append(guest)
        return guest

    def _guest_of(self, xml: str) -> FakeGuest:
        seen = domain_xml.parse(xml)
        guest = next((one for one in self.known if one.uuid == seen.uuid and one.exists), None)
        if guest is None:
            guest = self.new_guest(seen.name, seen.uuid)
            guest.active = guest.is_defined = False
        return guest

    def new_guest(self, name: str, uuid: str) -> FakeGuest:
        """A guest of which nothing was known."""
        return FakeGuest(name, uuid)

    def has_network(self, name: str) -> bool:
        return name in self.networks

    def start_network(self, xml: str) -> None:
        self.networks.append(ET.fromstring(xml).findtext("name", ""))

    def stop_network(self, name: str) -> None:
        self.networks.remove(name)

    def why_no_machine(self, emulator: str, arch: str, machine: str, kind: str) -> str | None:
        return self.no_machine

    def why_no_secret(self, uuid: str, kind: str = "", usage: str = "") -> str | None:
        return self.no_secret

    def has_cpu(self, emulator: str, arch: str, machine: str, kind: str, cpu_xml: str) -> bool:
        return self.any_cpu

    def versions(self) -> dict[str, str]:
        return {"libvirt": "11.3.0", "qemu": "10.0.2", "host_cpu": "Skylake"}
