"""How the named states are made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from labkit import bootsector, domains, guests, linux, settings
from labkit.domains import Disk


class Lab(domains.Host, Protocol):
    """What is needed of a lab here."""


@dataclass(frozen=True)
class Recipe:
    """A named state: what it is made from, how, and which code has a say in it."""

    name: str
    parent: str
    make: Callable[[Lab], None]
    code: tuple[Path, ...]


WEB_FILE = Disk("/tank/vm/web/disk0.raw")
WEB_VOLUME = Disk("/dev/zvol/tank/vm/web/data")


def make_ready(lab: Lab) -> None:
    """Two pools, a vault, libvirt awake; no guests. It is noon."""
    # What is due an hour later must not depend on when this is made.
    lab.run("TZ=UTC date -s 12:00:00")
    for pool, device in (("tank", "pool"), ("cheap", "cheap")):
        lab.run(f"zpool create -o ashift=12 -O compression=lz4 -O atime=off {pool} "
                f"/dev/disk/by-id/virtio-{device}")
    lab.run("zfs create cheap/vault && zfs create tank/vm")
    # The kernel patches its code when it sees its first limit of CPU time (see machine.py): here,
    # where little else runs, not when a test's guest has one.
    lab.run("cd /sys/fs/cgroup && echo +cpu > cgroup.subtree_control && mkdir limited &&"
            "echo 100000 100000 > limited/cpu.max")
    # Whatever is slow once is done here, so that no test waits for it.
    lab.run("virsh list && virsh capabilities > /dev/null && "
            "virsh domcapabilities --virttype qemu > /dev/null")
    lab.run("python3 -c 'import libvirt, libzfs_core, msgspec, typer, rich'")
    lab.run("zfs list && qemu-img --version && sanoid --version")
    lab.run("systemctl is-active zfs-import-cache zfs-mount && systemctl is-enabled zfs.target")


def make_guests(lab: Lab) -> None:
    """The domain `web`, running: a raw file and a volume, as a host would have them.

    Nothing of AppArmor is touched. libvirt's helper, which writes each guest's profile,
    may read images named *.raw, *.qcow2, *.img ... anywhere, and block devices; a real
    host with images of other names outside /var/lib/libvirt/images, /srv, /mnt ... has to
    allow them in /etc/apparmor.d/local/usr.lib.libvirt.virt-aa-helper.
    """
    lab.run("zfs create tank/vm/web")
    disks = [domains.make_disk(lab, disk) for disk in (WEB_FILE, WEB_VOLUME)]
    domains.define(lab, domains.domain_xml("web", disks))
    guests.start(lab, "web")


def make_linux(lab: Lab) -> None:
    """The domain `debian`, running: a Linux with an agent, two ext4 disks and a network card."""
    linux.make(lab)


_CODE = Path(__file__)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("ready", "", make_ready, (_CODE,)),
        Recipe("guests", "ready", make_guests,
               (_CODE, Path(domains.__file__), Path(bootsector.__file__), bootsector.SOURCE)),
        Recipe("linux", "ready", make_linux,
               (_CODE, Path(domains.__file__), Path(linux.__file__), *linux.SOURCES)),
    )
}


def key(name: str, machine_fingerprint: str) -> str:
    """Directory name of a state; changes when the state would."""
    recipe = RECIPES[name]
    parent = key(recipe.parent, machine_fingerprint) if recipe.parent else machine_fingerprint
    shape = f"{settings.DISKS} {settings.POOL_DISK_MIB}"
    return f"{name}-{settings.digest([parent, shape, *recipe.code])}"
