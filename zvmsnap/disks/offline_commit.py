"""Brings a guest that is off from overlays back to its bases, without running any of its code.

qemu-img merges, then the definition is put back. Starting the guest paused, as one might, would
have AppArmor deny it its bases, and leave a paused guest behind if we died.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from zvmsnap.common.errors import CommitFailed, OverlayUnreadable
from zvmsnap.disks import qemu_img
from zvmsnap.disks.live_commit import Leaving, check_possible
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.virt import domain_xml


class Defined(Protocol):
    """What is needed of a guest."""

    name: str

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def is_active(self) -> bool: ...
    def define(self, xml: str) -> None: ...
    def managed_save_xml(self) -> str | None: ...
    def managed_save_define(self, xml: str) -> None: ...


def to_base(
    guest: Defined,
    stacks: Mapping[str, OverlayChain],
    leaving: Leaving,
    step: Callable[[str, Callable[[], None]], None],
) -> None:
    """Merge every stack and put the definition back on the bases; may be repeated at any point.

    Raises CommitFailed, OverlayUnreadable, QemuImgFailed and LibvirtFailed; the overlay files are
    not touched.
    """
    check_possible(guest.name, stacks)
    for target, stack in stacks.items():
        step(f"merge {target}", partial(_merge, stack))
    for target in stacks:
        leaving(target, lambda: None)
    step("redefine", lambda: _redefine_stopped(guest, stacks))


def redefine(guest: Defined, stacks: Mapping[str, OverlayChain]) -> None:
    """Make the persistent definition, and a managed save image, name the bases.

    Raises LibvirtFailed and OverlayUnreadable.
    """
    sources = {target: _source(stack) for target, stack in stacks.items()}
    guest.define(domain_xml.with_sources(guest.xml(persistent=True, secure=True), sources))
    saved = guest.managed_save_xml()
    if saved:
        # RAM that somebody saved while the guest was on its overlays must find its disks again.
        guest.managed_save_define(domain_xml.with_sources(saved, sources))


def _redefine_stopped(guest: Defined, stacks: Mapping[str, OverlayChain]) -> None:
    if guest.is_active():
        raise CommitFailed(f"{guest.name}: was started while its overlays were merged")
    redefine(guest, stacks)


def _merge(stack: OverlayChain) -> None:
    for overlay in stack.overlays:
        qemu_img.merge_down(overlay)


def _source(stack: OverlayChain) -> tuple[str, str, str]:
    layers = {layer.path: layer.format for layer in qemu_img.chain(stack.top)}
    if stack.base not in layers:
        raise OverlayUnreadable(f"{stack.top} lies on {', '.join(layers)}, not on {stack.base}")
    kind = "block" if stat.S_ISBLK(os.stat(stack.base).st_mode) else "file"
    return kind, stack.base, layers[stack.base]
