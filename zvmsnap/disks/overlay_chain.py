"""Which disks of a guest are on overlays of ours, and on what these lie.

| the disk's source | below it                 | what it is                                        |
|-------------------|--------------------------|---------------------------------------------------|
| ours              | ours ..., then a base    | a stack: all of ours go, in order                 |
| ours              | cannot be told           | kept as it is, reported                           |
| not ours          | one of ours somewhere    | somebody's overlay on ours: not touched, reported |
| not ours          | none of ours             | none of our business                              |

The names of overlays and the chain are enough: a journal is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from zvmsnap.common.errors import OverlayUnreadable
from zvmsnap.disks import qemu_img
from zvmsnap.disks.staging import is_overlay
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest


class Defined(Protocol):
    """What is needed of a guest."""

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def is_active(self) -> bool: ...
    def is_persistent(self) -> bool: ...


@dataclass(frozen=True)
class OverlayChain:
    """A disk on overlays of ours, top first; `problem` says why it cannot be brought to `base`."""

    target: str
    overlays: tuple[str, ...]
    base: str = ""
    problem: str = ""

    @property
    def top(self) -> str:
        """What the guest writes to."""
        return self.overlays[0]


def of(
    domain: domain_xml.Domain, read: Callable[[str], tuple[qemu_img.Layer, ...]] = qemu_img.chain
) -> dict[str, OverlayChain]:
    """The stacks of a domain by target, by the table above."""
    found = {}
    for disk in domain.disks:
        stack = _of_disk(disk, read)
        if stack:
            found[disk.target] = stack
    return found


def of_guest(guest: Defined) -> dict[str, OverlayChain]:
    """The stacks that a guest is on, and those on which it would be started next."""
    found = of(domain_xml.parse(guest.xml()))
    if guest.is_active() and guest.is_persistent():
        found = of(domain_xml.parse(guest.xml(persistent=True))) | found
    return found


def _of_disk(
    disk: domain_xml.Disk, read: Callable[[str], tuple[qemu_img.Layer, ...]]
) -> OverlayChain | None:
    if not is_overlay(disk.source):
        ours = tuple(path for path in disk.chain if is_overlay(path))
        why = f"{disk.source} lies on it, which somebody else made: end that snapshot first"
        return OverlayChain(disk.target, ours, problem=why) if ours else None
    try:
        chain = disk.chain or tuple(layer.path for layer in read(disk.source)[1:])
    except OverlayUnreadable as error:
        return OverlayChain(disk.target, (disk.source,), problem=str(error))
    more = tuple(takewhile(is_overlay, chain))
    base = chain[len(more)] if len(chain) > len(more) else ""
    problem = "" if base else f"{disk.source} lies on no base"
    return OverlayChain(disk.target, (disk.source, *more), base, problem)


def images_of(guest: Guest) -> set[str]:
    """All images that a guest's definitions name, now."""
    named: set[str] = set()
    for persistent in (False, True) if guest.is_persistent() else (False,):
        for disk in domain_xml.parse(guest.xml(persistent=persistent)).disks:
            named.update((disk.source, *disk.chain))
            if is_overlay(disk.source) and not disk.chain:
                named.update(layer.path for layer in qemu_img.chain(disk.source))
    return named
