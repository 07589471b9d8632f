"""Definitions that tests clone, and what they compare of the result."""

import xml.etree.ElementTree as ET
from typing import Any

from zvmsnap.clone import domain_xml as clone_xml
from zvmsnap.clone.identity import Identity, Network
from zvmsnap.clone.own_places import OwnPlaces

OLD_UUID = "c0ffee00-0000-4000-8000-000000000001"
NEW_UUID = "c0ffee00-0000-4000-8000-000000000002"
POINT = "web@autosnap_2026-11-20_03:00:00_hourly"
VDA = {"vda": ("file", "/tank/web2/a.raw", "raw")}
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
WHOLE = """\
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>c0ffee00-0000-4000-8000-000000000001</uuid>
  {top}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/tank/web/a.raw'/><target dev='vda'/>
    </disk>
    {devices}
  </devices>
</domain>
"""


def domain(devices: str = "", top: str = "") -> str:
    return WHOLE.format(devices=devices, top=top)


def identity(**changes: Any) -> Identity:
    known = {"nvram": "/n/web2_VARS.fd", "network": Network.NONE}
    return Identity(**{"name": "web2", "uuid": NEW_UUID, "point": POINT, **known, **changes})


def cloned(
    xml: str, *, cold: bool = False, places: OwnPlaces | None = None, **changes: Any
) -> tuple[ET.Element, tuple[str, ...]]:
    places = places or OwnPlaces()
    result = clone_xml.as_clone(xml, identity(**changes), VDA, places, cold=cold)
    return ET.fromstring(result.xml), result.warnings


def plain(xml: str | ET.Element) -> str:
    """Without what does not count: blanks, quotes, the order of attributes."""
    text = xml if isinstance(xml, str) else ET.tostring(xml, encoding="unicode")
    return ET.canonicalize(text, strip_text=True)


def only(root: ET.Element, path: str) -> str:
    (element,) = root.findall(path)
    return plain(element)


def last_device(root: ET.Element) -> str | None:
    """What became of the device that a test put behind emulator and disk."""
    devices = root.findall("devices/*")
    return plain(devices[2]) if len(devices) > 2 else None


INTERFACE = (
    "<interface type='{kind}' trustGuestRxFilters='yes'><mac address='52:54:00:AA:bb:cc'/>"
    "<source network='default' portid='p' bridge='virbr0'/>"
    "<virtualport type='openvswitch'><parameters interfaceid='i' profileid='f'/></virtualport>"
    "<target dev='vnet7'/><model type='virtio'/><alias name='net0'/><address type='pci'/>"
    "</interface>"
)
