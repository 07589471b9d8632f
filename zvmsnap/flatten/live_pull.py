"""Pulls what is below the disks of a running guest into the images that they are on.

QEMU ends such a job by itself; only libvirt's live definition proves that nothing is below any
more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from zvmsnap.common.errors import FlattenFailed
from zvmsnap.common.waiting import sleep
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest_state import BlockJob

KIND = "pull"
_LOOK_EVERY_S = 0.5
# libvirt changes its definition an instant after the job has gone.
_LOOKS_AFTER_END = 20


class PullableGuest(Protocol):
    """A guest whose disks can be pulled while it runs."""

    name: str

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str: ...
    def block_job(self, target: str) -> BlockJob | None: ...
    def block_pull(self, target: str) -> None: ...


def pull(guest: PullableGuest, chains: Mapping[str, OverlayChain]) -> None:
    """Pull one disk after the other. Raises FlattenFailed and LibvirtFailed."""
    for target, chain in chains.items():
        job = guest.block_job(target)
        if job and job.kind != KIND:
            raise FlattenFailed(f"{guest.name}: {target}: a job of another kind is on it")
        if not job and _is_on_others(guest, target, chain.top):
            guest.block_pull(target)
        _await_end(guest, target, chain.top)


def _await_end(guest: PullableGuest, target: str, top: str) -> None:
    looks = 0
    while _is_on_others(guest, target, top):
        if guest.block_job(target) is None:
            looks += 1
            if looks > _LOOKS_AFTER_END:
                raise FlattenFailed(
                    f"{guest.name}: {target}: its pull ended, but it is on other images still; "
                    f"see /var/log/libvirt/qemu/{guest.name}.log"
                )
        sleep(_LOOK_EVERY_S)


def _is_on_others(guest: PullableGuest, target: str, top: str) -> bool:
    """Raises FlattenFailed if the disk is on another image than it was."""
    for disk in domain_xml.parse(guest.xml()).disks:
        if disk.target == target:
            if disk.source != top:
                raise FlattenFailed(f"{guest.name}: {target} is on {disk.source} now, not {top}")
            return bool(disk.chain)
    return False
