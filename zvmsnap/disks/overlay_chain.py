"""Which disks of a guest are on overlays of zvmsnap, and which images are below these.

| the disk's source | below it                 | what it is                                        |
|-------------------|--------------------------|---------------------------------------------------|
| ours              | ours ..., then a base    | an overlay chain: all of ours go, in order        |
| ours              | cannot be read           | kept as it is, reported                           |
| not ours          | one of ours somewhere    | somebody's overlay on ours: not touched, reported |
| not ours          | none of ours             | no overlay chain                                  |

The names of the overlays and their backing files are enough: a journal is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from zvmsnap.common.errors import OverlayUnreadable
from zvmsnap.disks import qemu_img
from zvmsnap.disks.staging import is_overlay
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

ReadChain = Callable[[str], tuple[qemu_img.Layer, ...]]


class DefinedGuest(Protocol):
    """A guest with a live and maybe a persistent definition."""

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def is_active(self) -> bool: ...
    def is_persistent(self) -> bool: ...


@dataclass(frozen=True)
class OverlayChain:
    """The overlays of one disk, top first; `problem` says why it cannot be brought to `base`.

    `below`: what the base itself is on, as after a snapshot that somebody else has made.
    """

    target: str
    overlays: tuple[str, ...]
    base: str = ""
    problem: str = ""
    below: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The overlay that the guest writes to."""
        return self.overlays[0]


def of(domain: domain_xml.Domain, read: ReadChain = qemu_img.chain) -> dict[str, OverlayChain]:
    """The overlay chains of a domain by target, by the table above."""
    chains = {disk.target: _of_disk(disk, read) for disk in domain.disks}
    return {target: chain for target, chain in chains.items() if chain}


def of_guest(guest: DefinedGuest) -> dict[str, OverlayChain]:
    """The overlay chains that a guest is on, and those on which it would be started next."""
    chains = of(domain_xml.parse(guest.xml()))
    if guest.is_active() and guest.is_persistent():
        chains = of(domain_xml.parse(guest.xml(persistent=True))) | chains
    return chains


def all_overlays(chains: Mapping[str, OverlayChain]) -> set[str]:
    """The overlays of all these chains."""
    return {overlay for chain in chains.values() for overlay in chain.overlays}


def images_of(guest: Guest) -> set[str]:
    """All images that a guest's definitions name, or that these are on.

    Of a guest that is off libvirt tells no chain, and somebody's overlay may be on one of ours.
    Raises OverlayUnreadable if an overlay of ours is named, and what is below it is unknown.
    """
    images: set[str] = set()
    for persistent in (False, True) if guest.is_persistent() else (False,):
        is_live = not persistent and guest.is_active()
        for disk in domain_xml.parse(guest.xml(persistent=persistent)).disks:
            if disk.source in images:
                continue
            images.update((disk.source, *disk.chain))
            ours = is_overlay(disk.source)
            if disk.chain or (is_live and not ours) or disk.format != "qcow2":
                continue
            try:
                images.update(layer.path for layer in qemu_img.chain(disk.source))
            except OverlayUnreadable:
                if ours:
                    raise
    return images


def _of_disk(disk: domain_xml.Disk, read: ReadChain) -> OverlayChain | None:
    if not is_overlay(disk.source):
        ours = tuple(path for path in disk.chain if is_overlay(path))
        why = f"{disk.source} is on top of it, made by somebody else: end that snapshot first"
        return OverlayChain(disk.target, ours, problem=why) if ours else None
    try:
        below = disk.chain
        # libvirt tells no path of a volume while its pool is not active.
        base_is_unknown = next((not path for path in below if not is_overlay(path)), False)
        if not below or base_is_unknown:
            below = tuple(layer.path for layer in read(disk.source)[1:])
    except OverlayUnreadable as error:
        return OverlayChain(disk.target, (disk.source,), problem=str(error))
    more = tuple(takewhile(is_overlay, below))
    base = below[len(more)] if len(below) > len(more) else ""
    problem = "" if base else f"{disk.source} has no base below it"
    return OverlayChain(disk.target, (disk.source, *more), base, problem, below[len(more) + 1 :])
