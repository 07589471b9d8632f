"""`make bench`: what the hooks cost, measured in the lab. Figures, not assertions.

The lab may be a machine in software emulation, in which everything takes ten to fifty times as
long as on a real host: compare its figures with each other and with former ones only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from labkit.api import CODE_DIR, Lab

RUNS = 5
UNKNOWN = "SANOID_TARGET=tank/vm/web SANOID_SNAPNAME=autosnap_2001-01-01_00:00:00_daily"
ELSEWHERE = UNKNOWN.replace("tank/vm/web", "cheap")

_TIMED = """
import subprocess, sys, time
def timed(command):
    begun_s = time.monotonic()
    subprocess.run(command, shell=True, check=True, capture_output=True)
    return time.monotonic() - begun_s
command = sys.stdin.read()
timed(command)
print([timed(command) for _ in range(int(sys.argv[1]))])
"""


def main() -> None:
    """Print one line for each figure."""
    lab = Lab()
    lab.reset("guests")
    try:
        lab.sync()
        lab.put("/root/timed.py", _TIMED)
        lab.put("/etc/zvmsnap/config.toml", 'vault = "/cheap/vault"\n')
        lab.run(f"install -D {CODE_DIR}/sanoid.conf.example /etc/sanoid/sanoid.conf")
        lab.run(f"python3 -m compileall -q {CODE_DIR}")
        _start_up(lab)
        _rounds(lab)
    finally:
        lab.down()


def _start_up(lab: Lab) -> None:
    for what, command in (
        ("python3 alone", "python3 -c pass"),
        ("prune of an unknown snapshot", f"{UNKNOWN} {CODE_DIR}/hooks/pruning"),
        ("pre of a dataset without guests", f"{ELSEWHERE} {CODE_DIR}/hooks/pre-snapshot"),
        ("post of a moment that was not begun", f"{UNKNOWN} {CODE_DIR}/hooks/post-snapshot"),
        ("zvmsnap list", "zvmsnap list"),
    ):
        seconds = json.loads(lab.run(f"python3 /root/timed.py {RUNS}", stdin=command).stdout)
        print(f"{what:38} {median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    trace = lab.run(
        f"{UNKNOWN} python3 -X importtime {CODE_DIR}/hooks/pruning 2>&1 | grep -c '^import time'"
    )
    print(f"{'modules imported by that prune':38} {int(trace.stdout):6}")


def _rounds(lab: Lab) -> None:
    for _ in range(RUNS):
        lab.run(
            "rm -rf /var/cache/sanoid; zfs destroy -r tank/vm/web@% 2>/dev/null; "
            "sanoid --take-snapshots",
            timeout_s=300,
        )
    points = json.loads(lab.run("zvmsnap list --json").stdout)["points"]
    for key, what in (
        ("pause_s", "guest paused"),
        ("dump_s", "memory snapshot call"),
        ("overlay_s", "guest on its overlays"),
        ("commit_s", "commit and pivot of two disks"),
    ):
        seconds = [point["timing"][key] for point in points]
        print(f"{what:38} {median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
