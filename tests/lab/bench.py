"""`make bench`: what the hooks cost, measured in the lab. Figures, not assertions.

The lab may be a machine in software emulation, in which everything takes ten to fifty times as
long as on a real host: compare its figures with each other and with former ones only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shlex import quote
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from labkit import guests
from labkit.api import CODE_DIR, Lab

RUNS = 3
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


# What nobody can do without: the guest goes, its disks go back, its RAM is loaded; two clones.
_BARE = """
set -e
virsh -q destroy web
image=$(ls -d /cheap/vault/web/autosnap_*/memory.img | tail -1)
name=$(zfs list -Ho name -t snapshot -d 1 tank/vm/web | tail -1 | cut -d@ -f2)
zfs rollback -r tank/vm/web@$name
zfs rollback -r tank/vm/web/data@$name
zfs destroy -r tank/bare 2> /dev/null || true
zfs clone tank/vm/web@$name tank/bare
zfs clone tank/vm/web/data@$name tank/bare/data
virsh -q restore $image
"""

# How long a command takes, and the time from its beginning to the guest's next count after it.
_TOLD = """
import os, subprocess, sys, time
log, command = sys.argv[1:]
def size():
    return os.stat(log).st_size if os.path.exists(log) else 0
begun_s = ended_s = grown_s = time.monotonic()
run = subprocess.Popen(command, shell=True, stdout=subprocess.DEVNULL)
last = size()
while run.poll() is None or grown_s < ended_s:
    now_s = time.monotonic()
    if size() != last:
        last, grown_s = size(), now_s
    if run.poll() is None:
        ended_s = now_s
    time.sleep(0.02)
assert run.returncode == 0, command
print([ended_s - begun_s, grown_s - begun_s])
"""


def main() -> None:
    """Print one line for each figure."""
    lab = Lab()
    lab.reset("guests")
    try:
        lab.sync()
        lab.put("/root/timed.py", _TIMED)
        lab.put("/root/told.py", _TOLD)
        lab.put("/etc/zvmsnap/config.toml", 'vault = "/cheap/vault"\n')
        lab.run(f"install -D {CODE_DIR}/sanoid.conf.example /etc/sanoid/sanoid.conf")
        lab.run(f"python3 -m compileall -q {CODE_DIR}")
        _start_up(lab)
        _rounds(lab)
        _back(lab)
    finally:
        lab.down()


def _back(lab: Lab) -> None:
    """Restore and clone, beside what virsh and zfs alone take for the least of it."""
    lab.put("/root/bare.sh", _BARE)
    for what, command in (
        ("virsh restore and zfs clone, bare", "sh /root/bare.sh"),
        ("zvmsnap restore --no-safety", "zvmsnap restore --yes --no-safety web@latest"),
        ("zvmsnap restore, with safety point", "zvmsnap restore --yes web@latest"),
        ("zvmsnap clone", "zvmsnap clone web@latest look"),
    ):
        seconds, to_count_s = [], []
        for _ in range(RUNS):
            log = f"{guests.SERIAL_DIR}/{'look-web' if 'look' in command else 'web'}.log"
            told = lab.run(
                f"python3 /root/told.py {log} {quote(command)}", timeout_s=300
            ).stdout.splitlines()[-1]
            took_s, counted_s = json.loads(told)
            seconds.append(took_s)
            to_count_s.append(counted_s)
            lab.run("zvmsnap clone --destroy look", check=False)
        print(
            f"{what:38} {median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"next count after {median(to_count_s):.2f} s"
        )


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
