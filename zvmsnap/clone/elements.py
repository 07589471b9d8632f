"""Small changes of XML elements, as a clone's definition needs them."""

from __future__ import annotations

import xml.etree.ElementTree as ET


def child(parent: ET.Element, tag: str) -> ET.Element:
    """The child of that name; made if the parent has none."""
    element = parent.find(tag)
    return element if element is not None else ET.SubElement(parent, tag)


def get(element: ET.Element, path: str, attribute: str) -> str:
    """An attribute of the element at `path`; empty if either is missing."""
    target = element.find(path)
    return target.get(attribute, "") if target is not None else ""


def drop(parent: ET.Element, *tags: str) -> None:
    """Remove all children of these names."""
    for tag in tags:
        for element in parent.findall(tag):
            parent.remove(element)


def drop_attributes(element: ET.Element, path: str, *names: str) -> None:
    """Remove these attributes of all elements at `path`."""
    for target in element.findall(path):
        for name in names:
            target.attrib.pop(name, None)
