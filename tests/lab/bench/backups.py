"""Backups of one disk by each way, beside `cp` and virtnbdbackup: how long, and how much is made.

The disk has 1 GiB, half of it data, and its guest is idle but for its counting. One guest has it on
ZFS, as a raw file; another one elsewhere, as qcow2, without which nobody has libvirt's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import scenario

from bench import scene
from bench.scene import Measured
from labkit import guests
from labkit.api import Lab
from labkit.errors import CommandError

FULL, INCREMENT = "full", "increment"
SNAPSHOT, PUSH, OVERLAY, OFF = "snapshot", "push", "overlay", "off"
COPY, COPY_QCOW2, OTHER = "cp, raw on ZFS", "cp, qcow2", "virtnbdbackup"

SIZE_MIB, DATA_MIB = 1024, 512
_ON_ZFS, _ELSEWHERE = "held", "plain"
_RAW = f"/tank/vm/{_ON_ZFS}/disk0.raw"
_QCOW2 = f"/var/lib/libvirt/images/{_ELSEWHERE}.qcow2"
_TO = "/cheap/backup"
_DATASET = _TO.removeprefix("/")
# The boot code, and the guest's counts.
_OWN_MIB = 2
_LIMIT_S = 900.0
# What virtnbdbackup's own documentation asks of a host with AppArmor.
_RULES = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
_ALLOWED = "/var/tmp/virtnbdbackup.* rw,\n/var/tmp/backup.* rw,\n"
_MIB = 1 << 20


@dataclass(frozen=True)
class Way:
    """A way of ours, and the guest it is for."""

    guest: str
    config: str = ""
    is_off: bool = False


WAYS = {
    SNAPSHOT: Way(_ON_ZFS),
    PUSH: Way(_ELSEWHERE),
    OVERLAY: Way(_ELSEWHERE, config="backup_overlay = true"),
    OFF: Way(_ELSEWHERE, is_off=True),
}


def measure(lab: Lab, repeats: int) -> Measured:
    """All ways in turn, each with a full backup and an increment, into an empty directory."""
    _prepare(lab)
    measured = Measured()
    for _ in range(repeats):
        for name, way in WAYS.items():
            scenario.configure(lab, way.config)
            lab.run(f"mkdir {_TO}/{name}")
            # The guest goes on between the two.
            for kind in (FULL, INCREMENT):
                guests.wait_counts(lab, way.guest, guests.counts(lab, way.guest)[-1] + 3)
                if way.is_off:
                    lab.run(f"virsh -q destroy {way.guest}")
                command = f"zvmsnap backup --crash {way.guest} {_TO}/{name}"
                measured.add(f"{name}, {kind}", **_made(lab, command))
                if way.is_off:
                    guests.start(lab, way.guest)
            lab.run(
                f"zvmsnap backup verify {_TO}/{name} && rm -r {_TO}/{name}",
                timeout_s=scenario.ROUND_LIMIT_S,
            )
        # It refuses a guest that has checkpoints of others.
        lab.run(
            f"for each in $(virsh checkpoint-list {_ELSEWHERE} --name); do "
            f"virsh -q checkpoint-delete {_ELSEWHERE} $each; done"
        )
        for kind, level in ((FULL, "full"), (INCREMENT, "inc")):
            command = f"virtnbdbackup -d {_ELSEWHERE} -l {level} -o {_TO}/other"
            try:
                measured.add(f"{OTHER}, {kind}", **_made(lab, command))
            except CommandError as error:
                measured.note(f"{OTHER}, {kind}: {str(error).splitlines()[-1]}")
        lab.run(f"rm -rf {_TO}/other")
        for name, path in ((COPY, _RAW), (COPY_QCOW2, _QCOW2)):
            measured.add(name, **_made(lab, f"cp {path} {_TO}/copy"))
            lab.run(f"rm {_TO}/copy")
    return measured


def _prepare(lab: Lab) -> None:
    """The two guests count, and the directory of backups is empty."""
    scene.prepare(lab)
    lab.put(_RULES, _ALLOWED)
    lab.run(f"zfs create -p {_RAW[1:].rpartition('/')[0]} && zfs create {_DATASET}")
    guests.make_disk(lab, guests.Disk(_RAW), size_mib=SIZE_MIB)
    lab.run(
        f"dd if=/dev/urandom of={_RAW} bs=1M seek={_OWN_MIB} count={DATA_MIB} conv=notrunc,fsync "
        f"status=none && qemu-img convert -f raw -O qcow2 {_RAW} {_QCOW2}",
        timeout_s=_LIMIT_S,
    )
    for name, disk in ((_ON_ZFS, guests.Disk(_RAW)), (_ELSEWHERE, guests.Disk(_QCOW2, "qcow2"))):
        guests.define(lab, guests.domain_xml(name, [disk]))
        guests.start(lab, name)


def _made(lab: Lab, command: str) -> dict[str, float]:
    """How long it takes until all is on the disk, of which nothing was cached; how much that is."""
    before_mib = _mib(lab)
    lab.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    took_s = scene.timed(lab, f"{{ {command} && sync -f {_TO}; }}")
    return {"took_s": took_s, "made_mib": _mib(lab) - before_mib}


def _mib(lab: Lab) -> float:
    """What lies there, in blocks that it takes."""
    return int(lab.run(f"zpool sync; du -s -B1 {_TO}").stdout.split()[0]) / _MIB
