"""Which way of running a guest really works on this host: KVM, or emulation."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from labkit import command, progress, settings
from labkit.image import Image

QEMU = "qemu-system-x86_64"
PROBE_TIMEOUT_S = 20.0
ALIVE = b"Run /init as init process"

KVM = ("-accel", "kvm", "-cpu", "host")
# qemu64 boots twice as fast as max. QEMU 7.2 corrupts flags in its emulation of cmpxchg16b when
# two CPUs run in threads, so the kernel must not know of it (clearcpuid=cx16, see machine.py); but
# the QEMU inside needs it, for each 16-byte store of a guest.
EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "qemu64")


def arguments(image: Image) -> tuple[str, ...]:
    """QEMU arguments for accelerator and CPUs.

    ZVMSNAP_LAB_ACCEL=kvm|tcg and ZVMSNAP_LAB_CPUS=n decide by hand.
    """
    asked = os.environ.get("ZVMSNAP_LAB_ACCEL")
    chosen = (KVM if asked == "kvm" else EMULATED) if asked else (
        KVM if _kvm_works(image) else EMULATED)
    # Emulated CPUs that share memory cost a quarter more for the same work, and wait busily for
    # each other where two labs share two CPUs.
    cpus = os.environ.get("ZVMSNAP_LAB_CPUS") or ("2" if chosen is KVM else "1")
    return (*chosen, "-smp", cpus)


def _kvm_works(image: Image) -> bool:
    """Whether KVM boots the lab's kernel; asked once per boot of the host and per image."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cached = settings.cache_dir() / f"kvm-{settings.digest([boot_id, image.key, version()])}"
    if not cached.exists():
        with progress.step("trying whether KVM runs a kernel here"):
            answer = _probe(image)
        for old in settings.cache_dir().glob("kvm-*"):
            old.unlink(missing_ok=True)
        cached.write_text(str(answer))
        progress.say("KVM works" if answer else "KVM does not work, so all is emulated")
    return cached.read_text() == "True"


def _probe(image: Image) -> bool:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *KVM,
             "-machine", "q35", "-m", "512", "-serial", "stdio", "-kernel", image.kernel,
             "-initrd", image.initrd, "-append", "console=ttyS0 panic=-1"],
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + PROBE_TIMEOUT_S
            while time.monotonic() < deadline:
                running = process.poll() is None
                output = os.pread(said.fileno(), 1 << 20, 0)
                if ALIVE in output:
                    return True
                if not running or b"KVM internal error" in output:
                    return False
                time.sleep(0.1)
            return False
        finally:
            process.kill()
            process.wait()


def version() -> str:
    """QEMU's version: a saved state is only loaded by the QEMU that saved it."""
    return command.run([QEMU, "--version"]).splitlines()[0]
