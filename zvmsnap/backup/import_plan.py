"""Plans an import: reads the backup, checks everything, and says what the guest will be. No change.

Nothing of a path that the backup names is used: disks come to places of their own, and so do
firmware variables. What else its definition reaches of this host is refused, unless this host has
made the backup, or the operator trusts it.
"""

from __future__ import annotations

import os
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath

from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.verify import check_chain
from zvmsnap.backup.writing import is_made_here
from zvmsnap.clone.definitions import own_nvram
from zvmsnap.clone.domain_xml import as_clone, without_mark
from zvmsnap.clone.elements import drop
from zvmsnap.clone.identity import Identity, Network
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common import log, snapshot_name
from zvmsnap.common.errors import BackupDamaged, CloneImpossible, ImportImpossible
from zvmsnap.config.settings import Config
from zvmsnap.inventory.beyond import beyond, is_in
from zvmsnap.inventory.sharing import shared
from zvmsnap.points import compatibility, definition, memory_image
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML
from zvmsnap.virt import domain_xml
from zvmsnap.virt.host import Host
from zvmsnap.zfs import branches, mounts, volume, zfs
from zvmsnap.zfs.mounts import DiskLocation

# Of all volumes that are made, as OpenZFS 2.2 has it by itself.
VOLUME_BLOCK_BYTES = 16 << 10
_STEM = "zvmsnap-import"


class Start(StrEnum):
    """What the guest does at the end."""

    OFF = "off"
    BOOT = "boot"
    RESUME = "resume"


@dataclass(frozen=True)
class ImportOptions:
    """What the operator asked for. `name` "": as the backup's guest, which must not be here."""

    to: str
    name: str = ""
    volumes: bool = False
    start: Start = Start.OFF
    network: Network = Network.NONE
    trust: bool = False


@dataclass(frozen=True)
class ImportPlan:
    """The guest that is to be: who it is, and where its disks will be."""

    backup: StoredBackup
    chain: tuple[StoredBackup, ...]
    domain: str
    uuid: str
    dataset: str
    folder: Path  # where the dataset will be mounted
    volumes: bool
    start: Start
    network: Network

    @property
    def is_another(self) -> bool:
        """Is it another guest than the one that was backed up?"""
        return self.uuid != self.backup.manifest.uuid

    @property
    def image(self) -> Path:
        """The RAM image that is loaded, with the new definition."""
        return self.folder / f".{_STEM}.img"

    @property
    def nvram(self) -> str:
        """Where its firmware variables will be."""
        return own_nvram(self.domain)

    def location(self, target: str) -> DiskLocation:
        """Where a disk will be."""
        if self.volumes:
            return DiskLocation(f"{self.dataset}/{target}", "")
        return DiskLocation(self.dataset, f"{target}.raw")

    def path(self, target: str) -> str:
        """The path of a disk."""
        if self.volumes:
            return volume.device_of(f"{self.dataset}/{target}")
        return str(self.folder / f"{target}.raw")

    # -- definitions

    def for_next_start(self) -> str:
        """The persistent definition. Raises ImportImpossible."""
        return self._own(_definition(self.backup, PERSISTENT_XML, DOMAIN_XML), cold=True)

    def of_ram(self) -> str:
        """The definition in the RAM image. Raises ImportImpossible and ImageUnloadable."""
        memory = self.backup.manifest.memory
        assert memory
        xml = memory_image.xml_of(self.backup.directory / memory.file, memory)
        _refuse_other_guest(self.backup, xml)
        return self._own(xml, cold=False)

    def _own(self, xml: str, *, cold: bool) -> str:
        kind = "block" if self.volumes else "file"
        sources = {
            disk.target: (kind, self.path(disk.target), "raw")
            for disk in self.backup.manifest.disks
        }
        try:
            prepared = _without_layers(xml, sources)
            if not self.is_another:
                return self._same(prepared, sources, cold=cold)
            nvram = self.nvram if domain_xml.parse(xml).nvram else None
            identity = Identity(self.domain, self.uuid, self.backup.name, nvram, self.network)
            made = as_clone(prepared, identity, sources, OwnPlaces(), cold=cold)
        except CloneImpossible as error:
            hint = "" if cold else "; without --resume it can be left out"
            raise ImportImpossible(f"{error}{hint}") from error
        except domain_xml.ParseError as error:
            raise ImportImpossible(f"{self.backup.name}: its definition: {error}") from error
        for warning in made.warnings:
            log.about(self.domain, "import").warning("%s", warning)
        return without_mark(made.xml)

    def _same(self, xml: str, sources: Mapping[str, tuple[str, str, str]], *, cold: bool) -> str:
        """The definition of the same guest, with its disks and firmware in their new places."""
        root = ET.fromstring(domain_xml.with_sources(xml, sources))
        devices = root.find("devices")
        for disk in domain_xml.parse(xml).disks:
            if not disk.writable or disk.target in sources or devices is None:
                continue
            if not cold:
                raise ImportImpossible(
                    f"{self.backup.name}: has no {disk.target}, which its RAM knows of: import it "
                    "without --resume"
                )
            log.about(self.domain, "import").warning("disk %s is left out", disk.target)
            for element in devices.findall("disk"):
                target = element.find("target")
                if target is not None and target.get("dev") == disk.target:
                    devices.remove(element)
        for nvram in root.findall("os/nvram"):
            drop(nvram, "source")
            nvram.attrib.pop("type", None)
            nvram.text = self.nvram
        return ET.tostring(root, encoding="unicode")


def _without_layers(xml: str, sources: Mapping[str, object]) -> str:
    """Without what a disk has in images below it, or in a data file: it is one image now."""
    root = ET.fromstring(xml)
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") in sources:
            drop(disk, "backingStore", "mirror")
            for inner in (*disk.findall("source"), *disk.findall("driver")):
                drop(inner, "dataStore", "slices", "metadata_cache")
    return ET.tostring(root, encoding="unicode")


def _definition(backup: StoredBackup, *names: str) -> str:
    for name in names:
        try:
            data = definition.stored(backup.directory, name)
            if data is not None:
                xml = data.decode()
                _refuse_other_guest(backup, xml)
                return xml
        except (OSError, ValueError) as error:
            raise ImportImpossible(f"{backup.directory / name}: cannot be read: {error}") from error
    raise ImportImpossible(f"{backup.directory}: has no definition")


def _refuse_other_guest(backup: StoredBackup, xml: str) -> None:
    try:
        domain = domain_xml.parse(xml)
    except domain_xml.ParseError as error:
        raise ImportImpossible(f"{backup.name}: its definition: {error}") from error
    if (domain.name, domain.uuid) != (backup.manifest.domain, backup.manifest.uuid):
        raise ImportImpossible(f"{backup.name}: its definition is of another guest")


def plan_import(config: Config, host: Host, path: Path, options: ImportOptions) -> ImportPlan:
    """Check everything and plan. All that is needed of the backup is read, and compared.

    Raises BackupInvalid, BackupDamaged, ImportImpossible and ZfsFailed.
    """
    directory = BackupDirectory(Path(os.path.realpath(path)).parent)
    backup = directory.backup(Path(os.path.realpath(path)).name)
    chain = directory.chain(backup)
    manifest = backup.manifest
    if options.start is Start.RESUME and manifest.memory is None:
        raise ImportImpossible(f"{backup.name}: has no RAM to be resumed from: say --start")
    plan = ImportPlan(
        backup=backup,
        chain=tuple(chain),
        domain=options.name or manifest.domain,
        uuid=str(uuids.uuid4()) if options.name else manifest.uuid,
        dataset=f"{options.to}/{options.name or manifest.domain}",
        folder=_folder(options.to) / (options.name or manifest.domain),
        volumes=options.volumes,
        start=options.start,
        network=options.network,
    )
    _check_free(host, plan)
    _check_room(options.to, plan)
    _check_machine(config, host, plan, trust=options.trust)
    try:
        check_chain(chain, frozenset(disk.target for disk in manifest.disks))
    except BackupDamaged as error:
        if any(directory.now(each) != each for each in chain):
            raise ImportImpossible(
                f"{backup.name}: was consolidated while it was read: import it again"
            ) from error
        raise
    return plan


def _folder(dataset: str) -> Path:
    """Where a dataset is mounted, below which the new one will be. Raises ImportImpossible."""
    mountpoint = mounts.mountpoint_of(dataset, mounts.read_table())
    if mountpoint is None:
        raise ImportImpossible(
            f"{dataset}: is no filesystem that is mounted: say the parent of the new dataset, "
            "such as tank/vm"
        )
    return Path(mountpoint)


def _check_free(host: Host, plan: ImportPlan) -> None:
    if not snapshot_name.is_dataset(plan.dataset) or "/" in plan.domain:
        raise ImportImpossible(f"{plan.dataset}: no dataset can be called that: say --as NAME")
    for guest in host.guests():
        if guest.uuid == plan.uuid:
            raise ImportImpossible(
                f"{guest.name}: is here already, the guest that was backed up: say --as NAME"
            )
        if guest.name == plan.domain:
            raise ImportImpossible(f"{guest.name}: there is a guest of that name: say --as NAME")
    if plan.dataset in zfs.datasets([plan.dataset]):
        raise ImportImpossible(f"{plan.dataset}: exists already: say --as NAME, or another --to")
    for path in (str(plan.folder), plan.nvram):
        if os.path.lexists(path):
            raise ImportImpossible(f"{path}: exists already: say --as NAME")


def _check_room(to: str, plan: ImportPlan) -> None:
    manifests = [backup.manifest for backup in plan.chain]
    needed_bytes = sum(each.stored_bytes for each in manifests)
    whole_bytes = sum(disk.disk_bytes for disk in plan.backup.manifest.disks)
    memory = plan.backup.manifest.memory
    needed_bytes = min(needed_bytes, whole_bytes + (memory.image_bytes if memory else 0))
    free_bytes = branches.rooms([to])[to].available
    if needed_bytes > free_bytes:
        raise ImportImpossible(
            f"{to}: has {free_bytes >> 20} MiB available, and {needed_bytes >> 20} MiB may be "
            "needed"
        )


def _check_machine(config: Config, host: Host, plan: ImportPlan, *, trust: bool) -> None:
    backup = plan.backup
    resumes = plan.start is Start.RESUME
    odd = [disk for disk in backup.manifest.disks if disk.disk_bytes % VOLUME_BLOCK_BYTES]
    if plan.volumes and resumes and odd:
        raise ImportImpossible(
            f"{odd[0].target}: no volume can be {odd[0].disk_bytes} bytes long, and its RAM knows "
            "how long it is: import it into files"
        )
    xmls = [plan.for_next_start(), *([plan.of_ram()] if resumes else [])]
    why = compatibility.why_not(host, xmls[-1], backup.manifest.host, cold=not resumes)
    if plan.start is not Start.OFF:
        why += _lacking_memory(xmls[-1])
    if why:
        raise ImportImpossible(f"{backup.name} does not fit this host: {'; '.join(why)}")
    original = host.find(backup.manifest.uuid)
    if original and (both := [each for xml in xmls for each in shared(xml, [original.xml()])]):
        raise ImportImpossible(f"{backup.name}: {'; '.join(dict.fromkeys(both))}")
    if is_made_here(config, backup.manifest):
        return
    devices = {plan.path(disk.target) for disk in backup.manifest.disks if plan.volumes}
    firmware = definition.own_firmware(plan.domain, plan.uuid)
    is_own = is_in([PurePath(plan.folder)], devices, firmware)
    reached = list(dict.fromkeys(each for xml in xmls for each in beyond(xml, is_own)))
    if reached and not trust:
        raise ImportImpossible(
            f"{backup.name}: was not made on this host, as far as it knows, and reaches more of it "
            f"than disks of its own: {'; '.join(reached)}. Look at {PERSISTENT_XML} and "
            f"{DOMAIN_XML} in {backup.directory}; if that is right, say --trust"
        )
    for each in reached:
        log.plain().warning("%s: trusted, though not made here: %s", backup.name, each)


def _lacking_memory(xml: str) -> list[str]:
    needed_bytes = domain_xml.parse(xml).memory_kib << 10
    available_bytes = compatibility.available_memory_bytes()
    if needed_bytes <= available_bytes:
        return []
    return [f"it needs {needed_bytes >> 20} MiB of memory, and {available_bytes >> 20} are free"]
