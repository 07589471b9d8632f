"""Under which conditions figures were measured: versions, the machine, and what else it did."""

from __future__ import annotations

import os
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from labkit import accel, image, settings
from labkit.api import Lab

Conditions = dict[str, str]

# Each prints one line; in the lab.
_IN_LAB = {
    "kernel": "uname -r",
    "ZFS": "zfs version | head -1",
    "zfs_bclone_enabled": "cat /sys/module/zfs/parameters/zfs_bclone_enabled",
    "libvirt": "libvirtd --version",
    "QEMU": "qemu-system-x86_64 --version | head -1",
    "sanoid": "dpkg-query -Wf '${Version}' sanoid",
    "Python": "python3 --version",
    "AppArmor": "dpkg-query -Wf '${Version}' apparmor",
    "zvmsnap": "zvmsnap --version",
}


def of_lab(lab: Lab) -> Conditions:
    """What runs in the lab."""
    script = "\n".join(f"echo $({command})" for command in _IN_LAB.values())
    lines = lab.run(script).stdout.splitlines()
    return dict(zip(_IN_LAB, lines, strict=True))


def of_host() -> Conditions:
    """What runs the lab."""
    arguments = accel.arguments(image.image())
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "code": code(),
        "CPU": f"{os.cpu_count()} x {model[1] if model else 'unknown'}",
        "accelerator": f"{arguments[1].partition(',')[0]}, {arguments[-1]} CPU in the lab",
    }


def code() -> str:
    """The last commit that changed what is measured, with `+` if there are changes since."""

    def git(*words: str) -> str:
        argv = ["git", "-C", str(settings.CHECKOUT_DIR), *words]
        return subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()

    commit = git("log", "-1", "--format=%h", "--", "zvmsnap", "hooks") or "unknown"
    return commit + "+" * bool(git("status", "--porcelain", "zvmsnap", "hooks"))


def product() -> str:
    """Changes when what is measured would; documents are no part of it."""
    return settings.digest([settings.CHECKOUT_DIR / "zvmsnap", settings.CHECKOUT_DIR / "hooks"])


def load() -> list[float]:
    """The host's load, of the last minute and of the last five."""
    return [round(each, 1) for each in os.getloadavg()[:2]]


class Elsewhere:
    """How busy the host is from now on with what is not measured."""

    def __init__(self) -> None:
        """Begin."""
        self._begun_s = time.monotonic()
        self._busy_s = _busy_s()

    def cpus(self, own_s: float) -> float:
        """CPUs busy elsewhere until now, on average; what is measured has had `own_s` of them."""
        passed_s = time.monotonic() - self._begun_s
        return round(max(0.0, _busy_s() - self._busy_s - own_s) / passed_s, 2)


def of_lab_s(lab: Lab) -> float:
    """Seconds of CPU that a lab has had since it was begun."""
    note = lab.instance.running()
    return note.process.cpu_s() if note else 0.0


def own_s() -> float:
    """Seconds of CPU that this process has had, and all below it that have ended."""
    return sum(os.times()[:4])


def _busy_s() -> float:
    """Seconds that all CPUs together were busy since the host's boot."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
