"""Which chains of a guest can be merged, and why not. Nothing is changed.

Refused are, each with what to do:

| what                                        | because                                          |
|---------------------------------------------|--------------------------------------------------|
| an overlay of ours in the chain             | `zvmsnap recover` merges it                      |
| a job, a run or a restore of the guest      | it works on the same disks                       |
| an image of another disk or guest, written  | a commit changes it for all that are on it       |
| a snapshot of libvirt that names an image   | it could not be reverted to any more             |
| a checkpoint with a bitmap of the disk      | the next increment would lack what is merged     |
| overlays other than qcow2, no files         | qemu-img and libvirt merge no others reliably    |
| too little room                             | the guest would stop in the middle               |
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common.errors import DomainGone, FlattenImpossible
from zvmsnap.disks import overlay_chain, qemu_img, staging
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.flatten.method import Method
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_BASES = ("raw", "qcow2")
_BLOCK_BYTES = 512  # of st_blocks


@dataclass(frozen=True)
class FlattenPlan:
    """What will be merged: the chains by target."""

    method: Method
    chains: Mapping[str, OverlayChain]

    def result(self, target: str) -> str:
        """The image that the disk is on afterwards."""
        chain = self.chains[target]
        return chain.base if self.method is Method.COMMIT else chain.top

    def superfluous(self, target: str) -> tuple[str, ...]:
        """The images that the disk does not need any more."""
        chain = self.chains[target]
        images = (*chain.overlays, chain.base)
        return tuple(image for image in images if image != self.result(target))


def plan(host: Host, guest: Guest, method: Method, targets: Collection[str] = ()) -> FlattenPlan:
    """The chains of all disks, or of these. Raises FlattenImpossible, with all reasons."""
    chains = foreign_chains(guest)
    if unknown := set(targets) - {disk.target for disk in _disks(guest)}:
        raise FlattenImpossible(f"{guest.name}: has no disk {', '.join(sorted(unknown))}")
    wanted = {name: chain for name, chain in chains.items() if not targets or name in targets}
    planned = FlattenPlan(method, wanted)
    reasons = [chain.problem for chain in wanted.values() if chain.problem]
    if not reasons and wanted:
        reasons = list(_reasons(host, guest, planned))
    if reasons:
        raise FlattenImpossible(f"{guest.name}: {'; '.join(reasons)}")
    return planned


def foreign_chains(guest: Guest) -> dict[str, OverlayChain]:
    """The disks that are on other images; `problem` says why one cannot be merged at all."""
    chains = {}
    for disk in _disks(guest):
        if not disk.writable or not disk.source:
            continue
        layers = qemu_img.chain(disk.source) if disk.chain or disk.format == "qcow2" else ()
        below = disk.chain or tuple(layer.path for layer in layers[1:])
        if below:
            formats = [layer.format for layer in layers]
            chains[disk.target] = _chain(disk, below, formats)
    return chains


def _disks(guest: Guest) -> tuple[domain_xml.Disk, ...]:
    return domain_xml.parse(guest.xml()).disks


def _chain(disk: domain_xml.Disk, below: tuple[str, ...], formats: list[str]) -> OverlayChain:
    images = (disk.source, *below)
    problem = ""
    if any(staging.is_overlay(image) for image in images):
        problem = f"{disk.target} is on an overlay of zvmsnap: zvmsnap recover merges it"
    elif why := domain_xml.why_no_overlay(disk):
        problem = why
    elif not all(image.startswith("/") for image in images):
        problem = f"{disk.target} is on an image that is no file of this host"
    elif len(formats) != len(images):
        problem = f"{disk.target}: libvirt and the headers of the images name other chains"
    elif set(formats[:-1]) != {"qcow2"} or formats[-1] not in _BASES:
        problem = f"{disk.target} is on images of formats {', '.join(formats)}: not merged"
    return OverlayChain(disk.target, images[:-1], images[-1], problem)


def _reasons(host: Host, guest: Guest, planned: FlattenPlan) -> Iterator[str]:
    yield from _named_by_libvirt(guest, planned)
    if planned.method is Method.COMMIT:
        yield from _shared(host, guest, planned)
    yield from _without_room(planned)


def _named_by_libvirt(guest: Guest, planned: FlattenPlan) -> Iterator[str]:
    images = {
        os.path.realpath(image)
        for chain in planned.chains.values()
        for image in (*chain.overlays, chain.base)
    }
    for snapshot in guest.snapshot_metadata():
        if images & set(map(os.path.realpath, snapshot.images)):
            yield (
                f"libvirt's snapshot {snapshot.name} names its images: virsh snapshot-delete "
                f"--metadata {guest.name} {snapshot.name} makes libvirt forget it"
            )
    for checkpoint in guest.checkpoint_metadata():
        if named := sorted(set(checkpoint.bitmaps) & set(planned.chains)):
            yield (
                f"checkpoint {checkpoint.name} of a backup is on {', '.join(named)}: virsh "
                f"checkpoint-delete {guest.name} {checkpoint.name}, and back up fully next"
            )


def _shared(host: Host, guest: Guest, planned: FlattenPlan) -> Iterator[str]:
    """Images below the first that somebody else is on, too."""
    for target, chain in planned.chains.items():
        written = {os.path.realpath(each) for each in (*chain.overlays[1:], chain.base)}
        for name, images in _images_of_others(host, guest, target):
            if common := sorted(written & images):
                yield (
                    f"{target}: {name} is on {common[0]}, too, which a commit would change: "
                    "say --method pull"
                )


def _images_of_others(
    host: Host, guest: Guest, target: str
) -> Iterator[tuple[str, frozenset[str]]]:
    for disk in _disks(guest):
        if disk.target != target and disk.source:
            below = disk.chain
            if not below and disk.format == "qcow2":
                below = tuple(layer.path for layer in qemu_img.chain(disk.source)[1:])
            yield f"its disk {disk.target}", _real((disk.source, *below))
    for other in host.guests():
        if other.uuid == guest.uuid:
            continue
        try:
            yield other.name, _real(overlay_chain.images_of(other))
        except DomainGone:
            continue


def _real(paths: Collection[str]) -> frozenset[str]:
    return frozenset(os.path.realpath(path) for path in paths if path)


def _without_room(planned: FlattenPlan) -> Iterator[str]:
    """What is written to may grow by all that the others take."""
    needed_bytes: dict[Path, int] = {}
    for target in planned.chains:
        result = Path(planned.result(target))
        if result.is_file():
            taken_bytes = sum(map(_taken_bytes, planned.superfluous(target)))
            needed_bytes[result.parent] = needed_bytes.get(result.parent, 0) + taken_bytes
    for folder, bytes_ in needed_bytes.items():
        free_bytes = staging.free_bytes(folder)
        if bytes_ > free_bytes:
            yield (
                f"{folder} has {free_bytes >> 20} MiB free, and the merged image may grow by "
                f"{bytes_ >> 20} MiB"
            )


def _taken_bytes(path: str) -> int:
    return os.stat(path).st_blocks * _BLOCK_BYTES
