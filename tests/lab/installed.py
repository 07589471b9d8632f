"""A host on which the package of zvmsnap was installed, as the lab has none: units, and a timer."""

from __future__ import annotations

import scenario

from labkit.api import CODE_DIR, Lab

RECOVER = "zvmsnap-recover.service"
# sanoid's timer is at work, but nothing is taken on its own account.
TIMER = "/etc/systemd/system/sanoid.timer.d/lab.conf"


def install(lab: Lab) -> None:
    """The units of the package, and sanoid's own, which the lab has masked."""
    lab.run(f"cp {CODE_DIR}/systemd/{RECOVER} /etc/systemd/system/")
    lab.put(TIMER, "[Timer]\nOnCalendar=\nOnCalendar=yearly\nPersistent=false\n")
    lab.run(
        "systemctl unmask sanoid.timer sanoid.service sanoid-prune.service && "
        "systemctl daemon-reload && systemctl enable --now sanoid.timer"
    )


def well(lab: Lab) -> None:
    """As `configured`, with all that `zvmsnap check` wants."""

    def make(lab: Lab) -> None:
        install(lab)
        lab.run(f"systemctl enable {RECOVER}")
        lab.run("zfs set recordsize=16K compression=zstd cheap/vault")
        lab.run("zfs set zvmsnap:keep-memory=24 tank/vm/web")

    scenario.stage(lab, "well", scenario.configured, make)
