"""One QEMU process: start it, know whether it lives, end it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labkit import accel, command, settings
from labkit.errors import KernelCrashed, LabError
from labkit.image import Image

# cgroup_disable=cpuset: a kernel that flips a static key patches its own code, and QEMU 7.2 with
# CPUs in threads may go on running the breakpoint of which that is made for a moment: "Oops: int3".
# Of the keys that flip again and again, that of cpusets is the one in __alloc_pages; libvirt makes
# and removes a cpuset for each guest that it starts. That of KVM's preemption notifiers is in
# __schedule; QEMU flips it when it asks what KVM can do. No guest in the lab needs KVM.
# oops=panic panic=-1, and -no-reboot: a crash ends the lab at once, so that no command waits for
# its timeout.
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=4 mitigations=off no_timer_check "
    "apparmor=1 systemd.show_status=false cgroup_disable=cpuset "
    "clearcpuid=cx16 module_blacklist=kvm,kvm_amd,kvm_intel oops=panic panic=-1"
)
KILL_TIMEOUT_S = 20.0
_CRASH = re.compile(r"\bOops: .*|kernel BUG at .*|Kernel panic - .*")


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Identify a process that runs."""
        return cls(pid, _started(pid))

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return bool(self.started) and _started(self.pid) == self.started

    def cpu_s(self) -> float:
        """Seconds of CPU that it has had."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        if not self.alive():
            return
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while self.alive():
            if time.monotonic() > deadline:
                raise LabError(f"process {self.pid} does not go away")
            time.sleep(0.01)
        with suppress(ChildProcessError):  # not ours if another lab command started it
            os.waitpid(self.pid, 0)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since the host did; empty if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def fingerprint(image: Image) -> str:
    """Changes when a saved state could no longer be loaded."""
    return settings.digest([accel.version(), *_arguments(image, "fingerprint", 0)])


def _arguments(image: Image, name: str, ssh_port: int) -> list[str]:
    arguments = [
        accel.QEMU, "-name", f"zvmsnap-lab-{name}", "-nodefaults", "-no-user-config",
        "-display", "none", "-no-reboot", "-machine", "q35", *accel.arguments(image),
        "-m", str(settings.MEMORY_MIB),
        "-kernel", str(image.kernel), "-initrd", str(image.initrd),
        "-append", KERNEL_COMMAND_LINE,
        "-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console",
        "-qmp", "unix:qmp,server=on,wait=off",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        # Memory the guest has freed leaves QEMU, and so never gets into a saved state.
        "-device", "virtio-balloon-pci,free-page-reporting=on",
    ]
    for disk in settings.DISKS:
        # writeback: what the guest flushes is in the host's file when a power cut comes.
        arguments += [
            "-drive", f"if=none,id={disk},file={disk}.qcow2,format=qcow2,cache=writeback,"
                      "discard=unmap,detect-zeroes=unmap",
            "-device", f"virtio-blk-pci,drive={disk},serial={disk}",
        ]
    return arguments


def start(directory: Path, image: Image, *, stream: Path | None, inherit: Sequence[int],
          ) -> tuple[Process, int]:
    """Start QEMU in an instance's directory; return it and its ssh port.

    With `stream` it loads that state instead of booting. The descriptors in `inherit`
    stay open as long as it lives.
    """
    for left_over in ("qmp", "ssh"):
        (directory / left_over).unlink(missing_ok=True)
    ssh_port = free_port()
    arguments = _arguments(image, directory.name, ssh_port)
    if stream is not None:
        arguments += ["-incoming", f"exec:cat {shlex.quote(str(stream))}"]
    with (directory / "qemu.log").open("ab") as log:
        process = subprocess.Popen(
            arguments, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=inherit, start_new_session=True)
    return Process.of(process.pid), ssh_port


def free_port() -> int:
    """A port of this host that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def crash(directory: Path) -> str:
    """With which words the lab's kernel crashed since its last reset; empty if it did not."""
    console = directory / "console.log"
    found = _CRASH.search(console.read_text(errors="replace")) if console.exists() else None
    return found[0].strip() if found else ""


def why_dead(directory: Path) -> LabError:
    """What a QEMU that ended, or a kernel that crashed, left behind; first of all in one line."""
    crashed = crash(directory)
    left = f"{command.tail(directory / 'qemu.log')}\n{command.tail(directory / 'console.log', 60)}"
    if crashed:
        return KernelCrashed(f"the lab's emulated kernel crashed: {crashed}\n{left}")
    return LabError(f"the lab's QEMU ended\n{left}")
