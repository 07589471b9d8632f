"""Reads a domain's definition by the table: all that it names of the host. Pure.

| the table has             | the element                           | resource              |
|---------------------------|---------------------------------------|-----------------------|
| a row for it              | names something                       | of the row's kind     |
| it among the plain ones   | any                                   | none                  |
| neither                   | has a path, or an attribute by which  | UNKNOWN, writable     |
|                           | others name something, or is a source | and state             |
| neither                   | any other                             | none                  |
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator

from zvmsnap.inventory import command_line, table
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.inventory.table import Row, Use

_NAMESPACE = re.compile(r"\{http://libvirt\.org/schemas/domain/(\w+)/[^}]*\}")
_FIELD = re.compile(r"\{(\.\.)?([\w/]*)(@\w+|\.)?(\?)?\}")
_CHAIN = ("backingStore", "dataStore", "mirror")
_CALLED_IN_CHAIN = {
    "backingStore": "backing file of {}",
    "dataStore": "data file of {}",
    "mirror": "copy of {}",
}
_PATH = re.compile(r"(^|[:=,])/")
# As libxml2, by which libvirt reads it; so it knows no longer chain of images either.
_DEPTH_MAX = 256
_COMMAND_LINE = command_line.ELEMENT
_ENVIRONMENT = command_line.ENVIRONMENT
_WORDS = {"loader": "firmware", "nvram": "firmware variables", "varstore": "firmware variables"}

_ROWS: dict[str, list[Row]] = defaultdict(list)
for _row in table.ROWS:
    _ROWS[_row.element].append(_row)

# From the definition's root to an element.
_Line = tuple[ET.Element, ...]


def resources_of(xml: str) -> tuple[Resource, ...]:
    """All that this definition names, in its order. Raises ParseError."""
    return tuple(
        dict.fromkeys(
            resource for line in _lines(ET.fromstring(xml)) for resource in _named_by(line)
        )
    )


def _lines(root: ET.Element) -> Iterator[_Line]:
    """All elements in their order, each with those that it is in."""
    waiting: list[_Line] = [(root,)]
    while waiting:
        line = waiting.pop()
        yield line
        if len(line) > _DEPTH_MAX:
            raise ET.ParseError(f"elements are nested more than {_DEPTH_MAX} deep")
        waiting.extend((*line, child) for child in reversed(line[-1]))


def _named_by(line: _Line) -> Iterator[Resource]:
    element = _path(line)
    if element == _COMMAND_LINE:
        arguments = [each.get("value", "") for each in line[-1] if _tag(each) == "qemu:arg"]
        yield from command_line.resources_of(arguments)
        return
    if element == _ENVIRONMENT:
        yield from command_line.of_environment(line[-1].get("name", ""), line[-1].get("value", ""))
        return
    used: set[str] = set()
    for row in _rows(element):
        if row.types and not _types(line) & set(row.types):
            continue
        used.update(_fields(row))
        place = _place(row, line)
        if place and not (row.unless and line[-1].get(row.unless) == "yes"):
            yield _resource(row, line, place)
    if not _is_plain(element, line):
        yield from _unknown(line, used)


def _tag(element: ET.Element) -> str:
    return _NAMESPACE.sub(r"\1:", element.tag)


def _path(line: _Line) -> str:
    return "/".join(_tag(each) for each in line[1:])


def _in_table(element: str) -> str:
    """The element's name in the table: the parts of a disk's chain are left out."""
    if not element.startswith("devices/disk/"):
        return element
    words = element.split("/")
    # The source of a chain's image stands for that of the disk, and holds the next image.
    while any(word in _CHAIN for word in words[:-1]):
        last = max(index for index, word in enumerate(words[:-1]) if word in _CHAIN)
        words = [*words[:2], *words[last + 1 :]]
    return "/".join(words)


def _rows(element: str) -> list[Row]:
    known = _in_table(element)
    any_tag = "/".join([*known.split("/")[:-1], "*"])
    return _ROWS.get(known, []) + _ROWS.get(any_tag, [])


def _types(line: _Line) -> set[str]:
    return {each.get("type", "") or each.get("model", "") for each in line[-2:]}


def _fields(row: Row) -> list[str]:
    """What the place is made of: "@name" of the element itself, and "." for its text."""
    found = _FIELD.findall(row.place)
    return [what for above, child, what, _ in found if what and not above and not child]


def _place(row: Row, line: _Line) -> str:
    fields = list(_FIELD.finditer(row.place))
    values = {field[0]: _value(field, line) for field in fields}
    is_whole = all(values[field[0]] for field in fields if not field.group(4))
    if not is_whole or not any(values.values()):
        return ""
    return _FIELD.sub(lambda field: values[field[0]], row.place).strip()


def _value(field: re.Match[str], line: _Line) -> str:
    above, child, what, _ = field.groups()
    if child == "hosts" and not what:
        return "".join(
            f" {host.get('name', '')}:{host.get('port', '')}{host.get('socket', '')}"
            for host in line[-1].findall("host")
        )
    element = line[-2] if above else line[-1].find(child) if child else line[-1]
    if element is None:
        return ""
    if what == ".":
        return (element.text or "").strip()
    return element.get(what.removeprefix("@"), "")


def _resource(row: Row, line: _Line, place: str) -> Resource:
    device = _device(line)
    roles = [_tag(each) for each in line if _tag(each) in _CHAIN]
    is_below = "backingStore" in roles
    is_read_only = _is_read_only(device)
    called = _called(device)
    for role in roles:
        called = _CALLED_IN_CHAIN[role].format(called)
    target = device.find("target")
    return Resource(
        called=row.called.format(called),
        kind=row.kind,
        place=place,
        writable=row.use is not Use.READS and not is_read_only and not is_below,
        is_state=row.use is Use.STATE and not (is_read_only or _is_unplugged_for_ram(device)),
        element=_path(line) + next((each for each in _fields(row) if each != "."), ""),
        target=target.get("dev", "") if device.tag == "disk" and target is not None else "",
        is_optional=row.is_optional or line[-1].get("startupPolicy") == "optional",
    )


def _device(line: _Line) -> ET.Element:
    """The device that an element belongs to, or what stands in its place outside of <devices>."""
    is_group = len(line) > 2 and line[1].tag in ("devices", "os")
    return line[2] if is_group else line[min(1, len(line) - 1)]


def _is_read_only(device: ET.Element) -> bool:
    if device.tag == "loader":
        return device.get("type") != "pflash" or device.get("readonly") == "yes"
    return device.get("device") == "cdrom" or device.find("readonly") is not None


def _is_unplugged_for_ram(device: ET.Element) -> bool:
    teaming = device.find("teaming")
    return teaming is not None and teaming.get("type") == "transient"


def _called(device: ET.Element) -> str:
    tag = _tag(device)
    target, mac = device.find("target"), device.find("mac")
    if tag == "disk":
        name = target.get("dev", "") if target is not None else ""
        return f"{device.get('device', 'disk')} {name}".rstrip()
    if tag == "interface" and mac is not None:
        return f"interface {mac.get('address', '')}"
    if tag in ("hostdev", "memory", "tpm", "graphics"):
        kind = device.get("type") or device.get("model") or device.get("mode") or ""
        return f"{tag} {kind}".rstrip()
    if tag == "shmem":
        return f"shared memory {device.get('name', '')}"
    if target is not None and tag in ("serial", "parallel", "console", "channel", "filesystem"):
        name = target.get("name") or target.get("port") or target.get("dir") or ""
        return f"{tag} {name}".rstrip()
    return _WORDS.get(tag, tag)


def _is_plain(element: str, line: _Line) -> bool:
    known = _in_table(element)
    if any(known == each or known.startswith(f"{each}/") for each in table.PLAIN_BELOW):
        return True
    if line[-1].tag == "source" and _types(line) & table.PLAIN_TYPES:
        return True
    return any(_tag(each) in table.PLAIN_TAGS for each in line)


def _unknown(line: _Line, used: set[str]) -> Iterator[Resource]:
    element = _path(line)
    is_source = line[-1].tag == "source" and not _rows(element)
    for name, value in line[-1].attrib.items():
        where = f"{element}@{name}"
        if f"@{name}" in used or f"{_in_table(element)}@{name}" in table.PLAIN_ATTRIBUTES:
            continue
        if value and (is_source or name in table.NAMING_ATTRIBUTES or _PATH.search(value)):
            yield Resource(where, Kind.UNKNOWN, value, True, True, where)
    text = (line[-1].text or "").strip()
    if "." not in used and _PATH.search(text):
        yield Resource(element, Kind.UNKNOWN, text, True, True, element)
