"""`make demo`: one guest, rounds of sanoid with the hooks, and what they left brought to life.

Everything shown is run in the lab at this moment: real sanoid, OpenZFS, libvirt and QEMU.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from labkit import guests
from labkit.api import CODE_DIR, Lab

LAB = Path(__file__).resolve().parent / "lab"
GUEST = "web"
KILLER = "/root/kill-sanoid"
SCREEN = Path(__file__).resolve().parents[2] / "build" / "screen.png"
JOURNAL = "/var/lib/zvmsnap/journal"


def main() -> None:
    """Tell the story in nine parts."""
    begun_s = time.monotonic()
    lab = Lab()
    lab.reset("guests")
    try:
        lab.sync()
        _tell(lab)
    finally:
        lab.down()
    _say(f"That was all; it took {time.monotonic() - begun_s:.0f} s.")


def _tell(lab: Lab) -> None:
    lab.run(
        f"install -D {CODE_DIR}/sanoid.conf.example /etc/sanoid/sanoid.conf && "
        "install -d /etc/zvmsnap && echo 'vault = \"/cheap/vault\"' > /etc/zvmsnap/config.toml"
    )
    _say(
        f"1. The guest `{GUEST}` runs. Several times a second it adds one to a count in its RAM,",
        "   and writes it to both disks: a file on tank/vm/web, the volume tank/vm/web/data.",
    )
    first = guests.wait_counts(lab, GUEST, 0)
    _show("virsh domblklist web; grep -v -e '^[[:space:]]*#' -e '^$' /etc/sanoid/sanoid.conf")

    _say("2. sanoid takes its snapshots. The hooks are zvmsnap's.")
    _show("sanoid --take-snapshots --verbose")
    after = guests.wait_counts(lab, GUEST, first)
    _say(
        f"   The guest counted from {first} to {after} meanwhile, and is back on its own disks:",
    )
    _show("virsh domblklist web")

    _say("3. Three snapshots of one moment, on two datasets, and one point that holds the RAM:")
    moment = lab.run("zfs list -Ho name -t snapshot -d 1 tank/vm/web | tail -1").stdout.strip()
    name = f"web@{moment.partition('@')[2]}"
    _show(f"zfs list -t snapshot -o name,used,refer; zvmsnap list; zvmsnap show {name}")
    _show("find /cheap/vault -type f -printf '%10s bytes  %p\\n'")

    _say(
        "4. The proof: zvmsnap puts both disks back, loads the RAM image, and the guest counts on.",
        "   It compares its RAM with its disks at every count; a difference would stop it.",
    )
    stood_at = guests.counts(lab, GUEST)[-1]
    _show(f"zvmsnap restore --yes {name}")
    guests.wait_counts(lab, GUEST, first)
    counts = guests.counts(lab, GUEST)
    back = next(after for before, after in itertools.pairwise(counts) if after < before)
    rebooted = "rebooted" if guests.boots(lab, GUEST) > 1 else "did not reboot"
    _say(f"   It {rebooted}; it had come to {stood_at} and more, and went on with {back} ...")

    _say("5. An hour later sanoid is killed, just when the guest is on its overlays.")
    _kill_and_recover(lab)

    _say("6. Retention. sanoid prunes hourly and daily: the monthly one still holds its point.")
    _prune(lab, "hourly daily")
    _say(
        "7. With its last snapshot the RAM image is gone. What the restore has replaced lies on",
        "   one of them, so that goes first. (And sanoid keeps what is not an hour old.)",
    )
    _show("zfs list -Ho name | grep before | head -1 | xargs zfs destroy -r; zvmsnap prune")
    lab.run("date -s '+1 hour'")
    _prune(lab, "hourly daily monthly")
    _say(
        "8. A last moment, and a second machine from it, with its RAM, beside the first.",
        "   Both count:",
    )
    lab.run("cp /root/sanoid.conf /etc/sanoid/sanoid.conf; date -s '+1 hour'")
    _show("sanoid --take-snapshots")
    _show("zvmsnap clone web@latest look; virsh list; virsh domblklist look")
    for each in (GUEST, f"look-{GUEST}"):
        seen = guests.counts(lab, each)[-1] if guests.counts(lab, each) else 0
        guests.wait_counts(lab, each, seen + 3)
    _show(f"tail -n 2 {guests.SERIAL_DIR}/*.log; zvmsnap clone --destroy look")
    _say("9. And every point can be proven by starting it; its screen is kept as a picture:")
    _show("zvmsnap verify --boot web@latest; zvmsnap list")
    SCREEN.parent.mkdir(exist_ok=True)
    SCREEN.write_bytes(lab.get(lab.run("ls /cheap/vault/web/*/verify.png").stdout.strip()))
    _say(f"   {SCREEN.relative_to(Path.cwd()) if SCREEN.is_relative_to(Path.cwd()) else SCREEN}")


def _kill_and_recover(lab: Lab) -> None:
    lab.put(KILLER, "#!/bin/sh\nvirsh domblklist web\nkill -KILL $PPID\n", mode=0o755)
    conf = "/etc/sanoid/sanoid.conf"
    lab.run(f"cp {conf} /root/ && sed -i 's,\\(post_snapshot_script =\\).*,\\1 {KILLER},' {conf}")
    lab.run("date -s '+1 hour'")
    _show("sanoid --take-snapshots; echo \"sanoid's exit status: $?\"")
    _say("   Its guard lives on. It ends the moment, and would after any other death too:")
    lab.run(f"cp /root/sanoid.conf {conf}")
    lab.run(f"until ! ls {JOURNAL}/*.json 2> /dev/null; do sleep 1; done")
    _show("virsh domblklist web; zvmsnap recover; zvmsnap list")
    _show("journalctl --no-pager -q -o cat -u 'zvmsnap-watchdog-*' | grep web")


def _prune(lab: Lab, types: str) -> None:
    for kind in types.split():
        lab.run(f"sed -i 's/\\b{kind} = .*/{kind} = 0/' /etc/sanoid/sanoid.conf")
    _show("sanoid --prune-snapshots --force-prune --verbose; zvmsnap list")


def _say(*lines: str) -> None:
    print("\n" + "\n".join(lines), flush=True)


def _show(command: str) -> None:
    shown = command if len(command) < 80 else command.replace("; ", ";\n     ")
    print(f"\n   # {shown}", flush=True)
    subprocess.run([LAB, "ssh", command], check=True)


if __name__ == "__main__":
    main()
