"""Domain and snapshot XML: read into structs, written for libvirt. Pure text, no libvirt calls."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

ParseError = ET.ParseError
# Not of libvirt, which ignores it.
_VOLUME_PATH = "file"
_AGENT = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Disk:
    """One <disk>. `source` is a path, "" for empty drives and kinds that have none.

    That of a volume of a storage pool is known by `with_volume_paths`.

    `chain` are the paths of its backing files, top first. `mirror` is "" without a block job,
    else "yes" when libvirt says that it can be pivoted, "no" while it cannot; `mirror_job` is its
    kind, such as `copy` or `active-commit`. `encrypted`: QEMU encrypts one of its images (LUKS).
    """

    target: str
    device: str
    type: str
    source: str
    format: str
    readonly: bool
    shareable: bool
    transient: bool
    chain: tuple[str, ...] = ()
    mirror: str = ""
    mirror_job: str = ""
    volume: tuple[str, str] | None = None
    encrypted: bool = False
    bus: str = ""

    @property
    def writable(self) -> bool:
        """Does the guest write state to it that a point must hold?"""
        if self.device == "floppy" and not (self.source or self.volume):
            return False  # an empty drive
        return self.device in ("disk", "lun", "floppy") and not self.readonly


@dataclass(frozen=True)
class Nvram:
    """Where the firmware variables are; `path` is "" if `type` is neither `file` nor `block`."""

    type: str
    path: str


@dataclass(frozen=True)
class Domain:
    """What we need to know of a domain's definition.

    `agent` is `connected`, `disconnected`, "" without a channel for one. `unmigratable` says which
    device keeps libvirt from saving RAM, as far as its definition tells; "" if none does.
    """

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    nvram: Nvram | None
    machine: str
    arch: str
    emulator: str
    cpu_mode: str
    cpu_model: str
    memory_kib: int
    agent: str = ""
    unmigratable: str = ""


def parse(xml: str) -> Domain:
    """Read a domain's XML as libvirt prints it. Raises ParseError."""
    root = ET.fromstring(xml)
    kind = root.find("os/type")
    cpu = root.find("cpu")
    return Domain(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        disks=tuple(_disk(disk) for disk in root.findall("devices/disk")),
        nvram=_nvram(root),
        machine=kind.get("machine", "") if kind is not None else "",
        arch=kind.get("arch", "") if kind is not None else "",
        emulator=root.findtext("devices/emulator", ""),
        cpu_mode=cpu.get("mode", "custom") if cpu is not None else "",
        cpu_model=cpu.findtext("model", "") if cpu is not None else "",
        memory_kib=int(root.findtext("memory", "0")),
        agent=_agent(root),
        unmigratable=_unmigratable(root),
    )


def _agent(root: ET.Element) -> str:
    for target in root.findall("devices/channel/target"):
        if target.get("name") == _AGENT:
            return target.get("state", "disconnected")
    return ""


# Elements with which it cannot be, but for devices that are unplugged for it (teaming).
_UNMIGRATABLE = (
    ("devices/hostdev[@mode='capabilities']", "a passed-through device ({})"),
    ("devices/hostdev[@type='pci']", "a passed-through PCI device"),
    ("devices/hostdev[@type='scsi']", "a passed-through SCSI device"),
    ("devices/hostdev[@type='scsi_host']", "a passed-through SCSI controller"),
    ("devices/hostdev[@type='mdev']", "a passed-through mediated device"),
    ("devices/interface[@type='hostdev']", "a passed-through network card"),
    ("devices/interface[@type='vdpa']", "a vDPA network card"),
    ("devices/filesystem/driver[@type='virtiofs']", "a directory shared by virtiofs"),
    ("devices/input[@type='passthrough']", "a passed-through input device"),
    ("devices/video/model/acceleration[@accel3d='yes']", "a 3D-accelerated video card"),
    ("devices/sound[@model='usb']", "a USB sound card"),
    ("devices/sound[@model='virtio']", "a virtio sound card"),
    ("devices/crypto", "a crypto device"),
    ("devices/disk/target[@bus='nvme']", "an NVMe controller"),
    ("launchSecurity", "encrypted RAM (launchSecurity {})"),
)
# As the driver of a disk that QEMU has open, also only to read.
_UNMIGRATABLE_FORMATS = frozenset(("parallels", "ploop", "qcow", "vdi", "vhdx", "vmdk", "vpc"))


def _unmigratable(root: ET.Element) -> str:
    """What keeps libvirt, or QEMU, from saving RAM (qemuMigrationSrcIsAllowed, query-migrate)."""
    for path, why in _UNMIGRATABLE:
        for element in root.findall(path):
            if element.find("teaming[@type='transient']") is None:
                return why.format(element.get("type", ""))
    for image in root.findall("devices/disk"):
        formats = {each.get("type") for each in (*image.iter("driver"), *image.iter("format"))}
        if no_ram := formats & _UNMIGRATABLE_FORMATS:
            return f"a disk of format {min(map(str, no_ram))}"
    for shared in root.findall("devices/shmem"):
        if shared.get("role") != "master":
            return f"shared memory {shared.get('name', '')} (shmem) without role='master'"
    invariant = any(
        feature.get("name") == "invtsc" and feature.get("policy", "require") in ("require", "force")
        for feature in root.findall("cpu/feature")
    )
    timed = any(
        timer.get("name") == "tsc" and timer.get("frequency")
        for timer in root.findall("clock/timer")
    )
    if invariant and not timed:
        return "CPU feature invtsc without a TSC frequency"
    if root.get("type") == "qemu" and _has_ram_in_parts(root):
        return "NUMA cells or memory modules, with emulated CPUs: QEMU misses what they write"
    return ""


def _has_ram_in_parts(root: ET.Element) -> bool:
    """Does QEMU keep its RAM as several blocks?

    From 9.0 on its physical_memory_sync_dirty_bitmap (include/system/ram_addr.h) takes an address
    within a block for one within all RAM. So emulated CPUs do not report again what they write into
    any block but the first, and a live dump misses it. If a block is larger than the first, QEMU
    ends.
    """
    return len(root.findall("cpu/numa/cell")) > 1 or bool(root.findall("devices/memory"))


def _disk(disk: ET.Element) -> Disk:
    source = disk.find("source")
    driver = disk.find("driver")
    target = disk.find("target")
    mirror = disk.find("mirror")
    kind = disk.get("type", "")
    volume = None
    if kind == "volume" and source is not None:
        volume = (source.get("pool", ""), source.get("volume", ""))
    return Disk(
        target=target.get("dev", "") if target is not None else "",
        device=disk.get("device", "disk"),
        type=kind,
        source=_path(kind, source),
        format=driver.get("type", "raw") if driver is not None else "raw",
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
        chain=_chain(disk),
        mirror="" if mirror is None else ("yes" if mirror.get("ready") == "yes" else "no"),
        mirror_job="" if mirror is None else mirror.get("job", ""),
        volume=volume,
        # A child of <disk>, as of old, of <source>, or of one in <backingStore>.
        encrypted=next(disk.iter("encryption"), None) is not None,
        bus=target.get("bus", "") if target is not None else "",
    )


def _path(kind: str, source: ET.Element | None) -> str:
    attribute = {"file": "file", "block": "dev", "volume": _VOLUME_PATH}.get(kind)
    if source is None or attribute is None:
        return ""
    return source.get(attribute, "")


def _chain(disk: ET.Element) -> tuple[str, ...]:
    paths = []
    store = disk.find("backingStore")
    while store is not None and store.get("type"):
        paths.append(_path(store.get("type", ""), store.find("source")))
        store = store.find("backingStore")
    return tuple(paths)


def _nvram(root: ET.Element) -> Nvram | None:
    nvram = root.find("os/nvram")
    if nvram is None:
        store = root.find("os/varstore")  # since libvirt 12.1, in a file always
        path = store.get("path", "") if store is not None else ""
        return Nvram("file", path) if path else None
    # libvirt 8.5 and later may write <nvram type='file'><source file=.../></nvram>.
    source = nvram.find("source")
    if source is None:
        path = (nvram.text or "").strip()
        return Nvram("file", path) if path else None
    kind = nvram.get("type", "file")
    return Nvram(kind, _path(kind, source))


def with_volume_paths(xml: str, path_of: Callable[[str, str], str]) -> str:
    """The definition with the path of each source that names a volume of a storage pool.

    libvirt gives pool and name alone, of disks and of what is below their overlays. `path_of` says
    "" where it is not known; what is no path of this host, as of an RBD pool, does not count.
    """
    if "volume" not in xml:
        return xml
    root = ET.fromstring(xml)
    for source in root.iter("source"):
        if source.get("pool") and source.get("volume"):
            path = path_of(source.get("pool", ""), source.get("volume", ""))
            if path.startswith("/"):
                source.set(_VOLUME_PATH, path)
    return ET.tostring(root, encoding="unicode")


def with_sources(
    xml: str, sources: Mapping[str, tuple[str, str, str]], *, chains: bool = False
) -> str:
    """The definition with other images for some targets: each a type, a path and a format.

    What was a volume of a storage pool, at that path, stays one. `chains`: what the definition says
    of the images below them stays.
    """
    root = ET.fromstring(xml)
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        new = sources.get(target.get("dev", "")) if target is not None else None
        if new is None:
            continue
        kind, path, image_format = new
        volume = _volume_at(disk, path)
        if volume is None and kind == "volume":
            kind = "block" if path.startswith("/dev/") else "file"
        disk.set("type", "volume" if volume else kind)
        for child in disk.findall("backingStore") if not chains else ():
            disk.remove(child)
        source = disk.find("source")
        if source is None:
            source = ET.SubElement(disk, "source")
        for name in ("file", "dev", "pool", "volume", "mode"):
            source.attrib.pop(name, None)
        if volume:
            source.attrib.update(volume)
        else:
            source.set("dev" if kind == "block" else "file", path)
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", name="qemu")
        driver.set("type", image_format)
    return ET.tostring(root, encoding="unicode")


def _volume_at(disk: ET.Element, path: str) -> dict[str, str] | None:
    """How the disk, or what is below it, names the volume at that path; None if it does not."""
    for source in disk.iter("source"):
        if source.get("pool") and source.get(_VOLUME_PATH) == path:
            names = ("pool", "volume", "mode", _VOLUME_PATH)
            return {name: source.get(name, "") for name in names if source.get(name)}
    return None


def unplugged_cards(xml: str) -> list[tuple[str, str]]:
    """Each network card whose link is down: as it would be with its link up, and as it is."""
    cards = []
    for card in ET.fromstring(xml).findall("devices/interface"):
        link = card.find("link")
        if link is None or link.get("state") != "down":
            continue
        down = ET.tostring(card, encoding="unicode")
        link.set("state", "up")
        cards.append((ET.tostring(card, encoding="unicode"), down))
    return cards


def snapshot_xml(
    name: str, memory_file: str, overlays: Mapping[str, str], others: tuple[str, ...]
) -> str:
    """The XML of a snapshot: an overlay for each target in `overlays`, none for `others`.

    A target with the overlay "" is the caller's to snapshot: the guest stays paused for that
    (libvirt 8.2). Without `memory_file` no RAM is dumped. Every disk of the domain must be named:
    for a disk that is not, libvirt makes an overlay beside the base, and so inside the dataset.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = name
    if memory_file:
        ET.SubElement(root, "memory", snapshot="external", file=memory_file)
    disks = ET.SubElement(root, "disks")
    for target, overlay in overlays.items():
        if not overlay:
            ET.SubElement(disks, "disk", name=target, snapshot="manual")
            continue
        disk = ET.SubElement(disks, "disk", name=target, snapshot="external", type="file")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "source", file=overlay)
    for target in others:
        ET.SubElement(disks, "disk", name=target, snapshot="no")
    return ET.tostring(root, encoding="unicode")


@dataclass(frozen=True)
class Metadata:
    """What libvirt keeps of a snapshot or checkpoint of a guest.

    `created_s`: by the clock of the host. `bitmaps`: of a checkpoint, by target. `images`: that it
    names, also in the definitions that it has.
    """

    name: str
    created_s: int
    bitmaps: Mapping[str, str]
    images: frozenset[str] = frozenset()


def read_metadata(xml: str) -> Metadata:
    """Read the XML of a snapshot or checkpoint, as libvirt prints it. Raises ParseError."""
    root = ET.fromstring(xml)
    disks = root.findall("disks/disk[@checkpoint='bitmap']")
    return Metadata(
        name=root.findtext("name", ""),
        created_s=int(root.findtext("creationTime", "0")),
        bitmaps={disk.get("name", ""): disk.get("bitmap", "") for disk in disks},
        images=frozenset(_images(root)),
    )


def _images(root: ET.Element) -> Iterator[str]:
    for disk in root.iter("disk"):
        for source in disk.iter("source"):
            yield from filter(None, (source.get("file"), source.get("dev")))


def why_no_overlay(disk: Disk) -> str | None:
    """Why this writable disk must not be frozen under an overlay; None if it may be.

    Refused by libvirt: <shareable/> (code 67), <transient/> (84), LUN passthrough and sources
    that are no file or block device (67), SD cards (84). Refused by us: an encrypted disk. A plain
    overlay would hold its data in clear text, and an encrypted one could not always be merged by
    qemu-img after a power cut: libvirt gives nobody the value of a private secret, and forgets an
    ephemeral one.
    """
    if disk.shareable:
        return f"{disk.target} is shareable"
    if disk.transient:
        return f"{disk.target} is transient"
    if disk.device == "lun":
        return f"{disk.target} is a passed-through LUN"
    if disk.encrypted:
        return f"{disk.target} is encrypted (LUKS): an overlay would hold its data in clear text"
    if disk.bus == "sd":
        return f"{disk.target} is an SD card"
    if not disk.source:
        return f"{disk.target} is of type {disk.type}, not a file or block device"
    return None
