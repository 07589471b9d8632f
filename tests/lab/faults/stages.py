"""The states of the lab from which cells begin."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import scenario

from labkit import guests, settings
from labkit.api import Lab

INSIDE = (Path(__file__).parent / "inside.py").read_text()
UNIT = "zvmsnap-recover.service"
CELL_LIMIT_S = 900.0

# Room for the RAM image and what the guest writes, and not much more.
STAGING_MIB = 320
CONFIG = """
[limits]
overlay_room_mib = 64
staging_reserve_mib = 32
"""

REFUSING_ZFS = """#!/bin/sh
test "$1" = snapshot && test -e /root/refuse-snapshots && { echo cannot >&2; exit 1; }
exec /usr/sbin/zfs "$@"
"""

# Staging can be filled without filling the host. And there are things of others.
PREPARE = f"""
set -e
fallocate -l {STAGING_MIB}M /srv/staging.img
mkfs.ext4 -q -m 0 /srv/staging.img
mkdir -p {scenario.STAGING}
echo '/srv/staging.img {scenario.STAGING} ext4 loop 0 0' >> /etc/fstab
systemctl daemon-reload
mount {scenario.STAGING}
echo mine > {scenario.STAGING}/notes.txt

zfs create tank/other
echo mine > /tank/other/file
zfs snapshot tank/other@kept
zfs snapshot -r tank/vm/web@by-hand

systemctl enable {UNIT}
"""

# The guest's writes are durable before it goes on, so that a power cut must not take any from it.
# That costs much, so it is not for all cells.
DURABLE = f"""
set -e
virsh -q destroy web
virsh dumpxml --inactive web | sed "s/cache='none'/cache='directsync'/" > /root/web.xml
grep -q directsync /root/web.xml
virsh -q define /root/web.xml
rm {guests.SERIAL_DIR}/web.log
virsh -q start web
"""


def tell(lab: Lab, *words: str) -> dict[str, Any]:
    """Run a command of inside.py; returns its story."""
    done = lab.run(f"python3 - {shlex.join(words)}", stdin=INSIDE, timeout_s=CELL_LIMIT_S)
    story: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return story


def base(lab: Lab) -> None:
    """A round was taken an hour ago, so that all is known and in its place; the next one is due."""

    def make(lab: Lab) -> None:
        lab.put(scenario.SANOID_CONF, scenario.EXAMPLE_CONF)
        scenario.configure(lab, CONFIG)
        lab.put(f"/etc/systemd/system/{UNIT}",
                (settings.CHECKOUT_DIR / "systemd" / UNIT).read_text())
        lab.put("/root/bin/zfs", REFUSING_ZFS, 0o755)
        lab.run(PREPARE)
        scenario.take(lab)
        scenario.assert_on_base(lab, "web", scenario.WEB.disks)
        (point,) = scenario.points(lab)
        assert point.manifest["level"] == "memory"
        lab.run("while systemctl list-units --no-legend 'zvmsnap-watchdog-*' | grep -q .; "
                "do sleep 0.2; done")
        scenario.pass_hours(lab, 1)

    scenario.stage(lab, "faults", lambda lab: scenario.with_code(lab, "guests"), make)


def row_state(row: str) -> str:
    """The name of a row's stage."""
    return f"faults-{row.replace(' ', '-')}"


def arm(lab: Lab, row: str) -> None:
    """Start a round and hold it at that step."""
    told = tell(lab, "arm", row)
    assert "broken" not in told, told["broken"]


def held(lab: Lab, row: str, *, keep: bool, durable: bool) -> None:
    """Bring the lab to where a round is held at that step; `keep` that for the next time."""
    if keep:
        scenario.stage(lab, row_state(row), base, lambda lab: arm(lab, row))
        return
    base(lab)
    if durable:
        lab.run(DURABLE)
        guests.wait_counts(lab, "web", 0)
    arm(lab, row)
