"""The definition of a clone: the same machine, which can run beside the one that it comes from.

It is applied to the definition in the RAM image and to the persistent one alike, so everything
new is derived: the same input gives the same output. With a RAM image the guest must find each of
its devices again; only what the host has behind them may change. Pure text, no libvirt calls.
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zvmsnap.clone.devices import adapt_devices
from zvmsnap.clone.elements import child, drop
from zvmsnap.clone.identity import Identity, derived, refusal
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.virt import domain_xml

_MARK = "urn:zvmsnap:clone"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("zvmsnap", _MARK)
ET.register_namespace("qemu", _QEMU)


@dataclass(frozen=True)
class CloneXml:
    """A clone's definition, and what an operator should know of it."""

    xml: str
    warnings: tuple[str, ...]


def as_clone(
    xml: str,
    clone: Identity,
    sources: Mapping[str, tuple[str, str, str]],
    places: OwnPlaces,
    *,
    cold: bool = False,
) -> CloneXml:
    """The definition of `clone`, whose own images are `sources`, as in domain_xml.with_sources.

    What else it has of the point is in `places`. `cold`: it starts without RAM, so what cannot
    exist twice may be left out, with a warning. Raises CloneImpossible, which names the device and
    what to do.
    """
    try:
        root = ET.fromstring(domain_xml.with_sources(xml, sources, chains=True))
        places.give(root)
        devices = root.find("devices")
        if devices is None:
            raise refusal(clone, "its definition has no devices")
        warnings = adapt_devices(devices, clone, frozenset(sources), places, cold=cold)
        _firmware(root, clone, places)
        _name(root, clone)
        return CloneXml(ET.tostring(root, encoding="unicode"), (*warnings, *_command_line(root)))
    except (domain_xml.ParseError, RecursionError) as error:
        raise refusal(clone, f"its definition cannot be read: {error}") from error


def cloned_from(xml: str) -> str | None:
    """The point that a domain was cloned from; None if zvmsnap has not made it.

    Raises domain_xml.ParseError.
    """
    mark = ET.fromstring(xml).find(f"metadata/{{{_MARK}}}clone")
    return mark.get("point") if mark is not None else None


def without_mark(xml: str) -> str:
    """The definition of a machine that is no clone, and stays: it is not `clone --destroy`'s."""
    root = ET.fromstring(xml)
    for metadata in root.findall("metadata"):
        drop(metadata, f"{{{_MARK}}}clone")
    return ET.tostring(root, encoding="unicode")


def _name(root: ET.Element, clone: Identity) -> None:
    root.attrib.pop("id", None)
    child(root, "name").text = clone.name
    child(root, "uuid").text = clone.uuid
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        # libvirt refuses one that differs.
        entry.text = clone.uuid
    for genid in root.findall("genid"):
        if genid.text:
            genid.text = str(uuid.UUID(bytes=derived(clone, genid.text)[:16]))
    for seclabel in root.findall("seclabel[@type='dynamic']"):
        drop(seclabel, "label", "imagelabel")
    metadata = child(root, "metadata")
    drop(metadata, f"{{{_MARK}}}clone")
    ET.SubElement(metadata, f"{{{_MARK}}}clone", point=clone.point)


def _firmware(root: ET.Element, clone: Identity, places: OwnPlaces) -> None:
    """Give it its own firmware variables: loading a RAM image writes them back to the file."""
    for loader in root.findall("os/loader[@type='pflash']"):
        path = (loader.text or "").strip()
        # Without `readonly` libvirt lets it be written to.
        if path and loader.get("readonly") != "yes" and not places.has(path):
            raise refusal(clone, f"it writes to its firmware {path}: give it an <nvram> first")
    for store in root.findall("os/varstore"):
        if not places.has(store.get("path", "")):
            store.attrib.pop("path", None)  # libvirt chooses one by the name
    for nvram in root.findall("os/nvram"):
        source = nvram.find("source")
        if source is not None and places.has(source.get("dev", "")):
            continue
        if source is None:
            nvram.text = clone.nvram
        elif clone.nvram is None:
            nvram.remove(source)
            nvram.attrib.pop("type", None)
        else:
            source.clear()
            source.set("file", clone.nvram)
            nvram.set("type", "file")


def _command_line(root: ET.Element) -> Iterator[str]:
    if root.find(f"{{{_QEMU}}}commandline") is not None:
        yield "qemu:commandline is kept: check that it names nothing that the host has only once"
