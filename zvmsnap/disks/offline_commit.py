"""Brings a guest that is off from its overlays to its bases, without starting it.

qemu-img merges the overlays, and after that the definition names the bases again. To start the
guest paused, and commit then, is no way: AppArmor would deny it its bases, and if zvmsnap died, a
paused guest would be left behind.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from zvmsnap.common.errors import CommitFailed, OverlayUnreadable
from zvmsnap.disks import qemu_img
from zvmsnap.disks.live_commit import ReleaseDisk, check_possible
from zvmsnap.disks.overlay_chain import DefinedGuest, OverlayChain
from zvmsnap.virt import domain_xml


class RedefinableGuest(DefinedGuest, Protocol):
    """A guest whose definition, and managed save image, can be changed."""

    name: str

    def define(self, xml: str) -> None: ...
    def managed_save_xml(self) -> str | None: ...
    def managed_save_define(self, xml: str) -> None: ...


def to_base(
    guest: RedefinableGuest,
    chains: Mapping[str, OverlayChain],
    release_disk: ReleaseDisk,
    step: Callable[[str, Callable[[], None]], None],
) -> None:
    """Merge every chain and let the definition name the bases; may be repeated at any point.

    Raises CommitFailed, OverlayUnreadable, QemuImgFailed and LibvirtFailed; the overlay files are
    not touched.
    """
    check_possible(guest.name, chains)
    for target, chain in chains.items():
        step(f"merge {target}", partial(_merge, chain))
    for target in chains:
        release_disk(target, lambda: None)
    step("redefine", lambda: _redefine_stopped(guest, chains))


def redefine(guest: RedefinableGuest, chains: Mapping[str, OverlayChain]) -> None:
    """Make the persistent definition, and a managed save image, name the bases.

    Raises LibvirtFailed and OverlayUnreadable.
    """
    redefine_sources(guest, {target: _base_source(chain) for target, chain in chains.items()})


def redefine_sources(guest: RedefinableGuest, sources: Mapping[str, tuple[str, str, str]]) -> None:
    """The same, with type, path and format of each base. Raises LibvirtFailed."""
    guest.define(domain_xml.with_sources(guest.xml(persistent=True, secure=True), sources))
    saved_xml = guest.managed_save_xml()
    if saved_xml:
        # RAM that somebody saved while the guest was on its overlays must be loaded over its bases.
        guest.managed_save_define(domain_xml.with_sources(saved_xml, sources))


def _redefine_stopped(guest: RedefinableGuest, chains: Mapping[str, OverlayChain]) -> None:
    if guest.is_active():
        raise CommitFailed(f"{guest.name}: was started while its overlays were merged")
    redefine(guest, chains)


def _merge(chain: OverlayChain) -> None:
    for overlay in chain.overlays:
        qemu_img.merge_down(overlay)


def _base_source(chain: OverlayChain) -> tuple[str, str, str]:
    """Type, path and format of the base, as in libvirt's XML."""
    formats = {layer.path: layer.format for layer in qemu_img.chain(chain.top)}
    if chain.base not in formats:
        raise OverlayUnreadable(f"{chain.top} is on {', '.join(formats)}, not on {chain.base}")
    kind = "block" if stat.S_ISBLK(os.stat(chain.base).st_mode) else "file"
    return kind, chain.base, formats[chain.base]
