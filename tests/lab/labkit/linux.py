"""A Linux guest for the lab: the lab's own kernel, the real qemu-ga, two ext4 disks, a writer.

tests/lab/guest/init is its first process and says what it writes. Slow to boot in emulation
within emulation, so it is kept as a live state.
"""

import json
import re
import time
from dataclasses import dataclass
from itertools import pairwise

from labkit import domains, settings
from labkit.domains import Disk, Host
from labkit.errors import LabError

NAME = "debian"
FILE = Disk("/tank/vm/debian/disk0.raw")
VOLUME = Disk("/dev/zvol/tank/vm/debian/data")
BRIDGE = "virbr-lan"
ADDRESS = "10.7.0.2"
SOURCES = tuple(settings.LAB_DIR / "guest" / name for name in ("init", "freeze-hook"))

_BOOT_DIR = "/var/lib/libvirt/images/debian"
_TREE = "/var/tmp/debian"
_DISK_MIB = 48
_MEMORY_MIB = 128
_BOOT_LIMIT_S = 900.0
_ANSWER_LIMIT_S = 60  # libvirt itself waits for 5, and a busy guest is slower
_MODULES = "virtio_blk virtio_net virtio_rng"
_NETWORK = f"<network><name>lan</name><bridge name='{BRIDGE}'/></network>"
_DEVICES = (
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    "<interface type='network'><mac address='52:54:00:7a:76:01'/><source network='lan'/>"
    "<model type='virtio'/><rom enabled='no'/></interface>"
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
)
_TREE_SCRIPT = f"""
mkdir -p {_TREE}/bin {_TREE}/modules {_BOOT_DIR}
cp /bin/busybox {_TREE}/bin/
ln -s busybox {_TREE}/bin/sh
cp $(command -v qemu-ga) {_TREE}/bin/
ldd $(command -v qemu-ga) | grep -o '/[^ ]*' | while read -r library; do
    install -D "$library" "{_TREE}$library"
done
for module in {_MODULES}; do modprobe --show-depends $module; done |
    grep '^insmod' | cut -d' ' -f2 | awk '!seen[$0]++' | while read -r module; do
    name=$(basename $module .xz)
    if test "$module" = "${{module%.xz}}"; then cat $module; else xz -dc $module; fi \
        > {_TREE}/modules/$name
    echo $name >> {_TREE}/modules/order
done
"""


@dataclass(frozen=True)
class Write:
    """One line of the writer: what it wrote, and when, in the guest's own time."""

    count: int
    up_s: float


def make(lab: Host, name: str = NAME) -> None:
    """Make and start the guest; wait until its agent answers."""
    lab.run(f"zfs create tank/vm/{name}")
    lab.run(_TREE_SCRIPT)
    for source in SOURCES:
        target = f"{_TREE}/{source.name}"
        lab.run(f"cat > {target} && chmod 755 {target}", stdin=source.read_bytes())
    lab.run(f"cd {_TREE} && find . | cpio --quiet -o -H newc | gzip -1 > {_BOOT_DIR}/initrd.img && "
            f"cp /boot/vmlinuz {_BOOT_DIR}/vmlinuz && rm -r {_TREE}")
    lab.run(f"truncate -s {_DISK_MIB}M {FILE.path}")
    volume = VOLUME.path.removeprefix("/dev/zvol/")
    lab.run(f"zfs create -s -V {_DISK_MIB}M {volume} && udevadm settle -E {VOLUME.path}")
    for disk in (FILE, VOLUME):
        lab.run(f"mkfs.ext4 -q -F {disk.path}")
    lab.run("virsh -q net-define /dev/stdin && virsh -q net-start lan && "
            f"ip address add 10.7.0.1/24 dev {BRIDGE}", stdin=_NETWORK)
    boot = (f"<kernel>{_BOOT_DIR}/vmlinuz</kernel><initrd>{_BOOT_DIR}/initrd.img</initrd>"
            "<cmdline>console=ttyS0 quiet mitigations=off no_timer_check rdinit=/init</cmdline>")
    domains.define(lab, domains.domain_xml(
        name, [FILE, VOLUME], memory_mib=_MEMORY_MIB, machine="q35", devices=_DEVICES, boot=boot))
    lab.run(f"virsh -q start {name}")
    wait_agent(lab, name, _BOOT_LIMIT_S)
    wait_writes(lab, name, 3, timeout_s=_BOOT_LIMIT_S)


def wait_agent(lab: Host, name: str = NAME, timeout_s: float = 120.0) -> None:
    """Wait until the guest's agent answers."""
    lab.run(f"""for _ in $(seq {int(timeout_s)}); do
        virsh -q qemu-agent-command {name} '{{"execute":"guest-ping"}}' > /dev/null 2>&1 && exit 0
        sleep 1
        done; tail -n 20 {domains.SERIAL_DIR}/{name}.log; exit 1""", timeout_s=timeout_s * 3)


def writes(lab: Host, name: str = NAME, since_byte: int = 0) -> list[Write]:
    """What the writer has said, in the order it did."""
    log = f"{domains.SERIAL_DIR}/{name}.log"
    text = lab.run(f"tail -c +{since_byte + 1} {log}").stdout.replace("\0", "").replace("\r", "")
    return [Write(int(count), float(up_s))
            for count, up_s in re.findall(r"^W (\d+) ([\d.]+)\n", text, re.M)]


def wait_writes(lab: Host, name: str, more_than: int, *, since_byte: int = 0,
                timeout_s: float = 180.0) -> int:
    """Wait until the last count is higher; return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = writes(lab, name, since_byte)
        if seen and seen[-1].count > more_than:
            return seen[-1].count
        if time.monotonic() > deadline:
            raise LabError(f"{name} did not write beyond {more_than}: {seen[-3:]}")
        time.sleep(0.2)


def longest_wait_s(seen: list[Write]) -> float:
    """The longest time between two writes, in the guest's own time."""
    return max(b.up_s - a.up_s for a, b in pairwise(seen))


def agent(lab: Host, command: str, name: str = NAME, **arguments: object) -> object:
    """Ask the guest's agent, as an operator would; return its answer."""
    question = json.dumps({"execute": command, "arguments": arguments})
    ask = f'virsh -q qemu-agent-command {name} --timeout {_ANSWER_LIMIT_S} --cmd "$(cat)"'
    return json.loads(lab.run(ask, stdin=question).stdout)["return"]
