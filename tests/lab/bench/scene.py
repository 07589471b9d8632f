"""The lab's side of a cell: guests, AppArmor, hooks of each way, a clean slate between rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scenario

from bench.cells import FREEZE, MEMORY, PAUSED, QUIESCED, THREE_NAMES, USUAL
from labkit import guests
from labkit.api import Lab

OWN = Path(__file__).resolve().parent
INSIDE = "/root/bench"
USUAL_DIR = "/cheap/usual"
MODE = {MEMORY: "memory", PAUSED: "paused", THREE_NAMES: "paused", QUIESCED: "quiesced"}
# RAM of a counting guest beside what it fills: its BIOS's, and its own.
UNFILLED_MIB = 32
MEMORY_MIN_MIB = 64
_FILL_LIMIT_S = 900.0

Figures = dict[str, dict[str, list[float]]]


@dataclass
class Measured:
    """What a cell gave: seconds and the like by way and measure, one for each repeat."""

    figures: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, way: str, **values: float) -> None:
        """Add one repeat of a way."""
        for measure, value in values.items():
            self.figures.setdefault(way, {}).setdefault(measure, []).append(round(value, 4))

    def note(self, text: str) -> None:
        """Note something that a reader must know; once."""
        if text not in self.notes:
            self.notes.append(text)


def prepare(lab: Lab, state: str = "ready") -> None:
    """A lab in that state, with the code of now, and what measures in it."""
    scenario.with_code(lab, state)
    carry(lab)
    lab.run(f"zfs create -o mountpoint={USUAL_DIR} cheap/usual")


def carry(lab: Lab) -> None:
    """Have what measures in the lab."""
    for path in [*OWN.glob("inside/*"), *OWN.glob("usual/*")]:
        if path.is_file():
            lab.put(f"{INSIDE}/{path.name}", path.read_bytes(), path.stat().st_mode & 0o777)


def without_apparmor(lab: Lab) -> None:
    """libvirt confines no guest that is started from now on."""
    lab.run(
        "echo 'security_driver = \"none\"' >> /etc/libvirt/qemu.conf && "
        "systemctl restart libvirtd && virsh list > /dev/null && "
        "! virsh capabilities | grep -q '<model>apparmor'"
    )


def disks_of(name: str, count: int, parent: str = "tank/vm") -> list[guests.Disk]:
    """A guest's disks: files and volumes in turn."""
    return [
        guests.Disk(
            f"/dev/zvol/{parent}/{name}/data{number}"
            if number % 2
            else f"/{parent}/{name}/disk{number}.raw"
        )
        for number in range(count)
    ]


def make_guest(lab: Lab, name: str, filled_mib: int, disks: int, parent: str = "tank/vm") -> str:
    """A counting guest with all its disks in one dataset, which is returned; it counts."""
    dataset = f"{parent}/{name}"
    memory_mib = max(MEMORY_MIN_MIB, filled_mib + UNFILLED_MIB)
    lab.run(f"zfs create -p {dataset}")
    made = [
        guests.make_disk(lab, disk, fill_mib=filled_mib, memory_mib=memory_mib)
        for disk in disks_of(name, disks, parent)
    ]
    guests.define(lab, guests.domain_xml(name, made, memory_mib=memory_mib))
    lab.run(f"virsh -q start {name}")
    guests.wait_counts(lab, name, 0, timeout_s=_FILL_LIMIT_S)
    return dataset


def remove_guest(lab: Lab, name: str, dataset: str) -> None:
    """As if there had never been such a guest, whatever it is on."""
    lab.run(
        f"virsh -q destroy {name}; for each in $(virsh snapshot-list {name} --name); do "
        f"virsh -q snapshot-delete {name} $each --metadata; done; virsh -q undefine {name}; "
        f"rm -f {guests.SERIAL_DIR}/{name}.log /var/lib/libvirt/images/{name}-*; "
        f"for _ in $(seq 10); do zfs destroy -r {dataset} && break; sleep 1; done",
        check=False,
    )


def use(lab: Lab, way: str, *sections: str) -> None:
    """sanoid has the hooks of a way, or none with `""`, for sections of sanoid.conf."""
    scenario.configure(lab, f'mode = "{MODE[way]}"' if way in MODE else "")
    hooks = f"{scenario.HOOKS}/pre-snapshot", f"{scenario.HOOKS}/post-snapshot"
    if way == USUAL:
        hooks = f"{INSIDE}/pre", f"{INSIDE}/post"
    elif way == FREEZE:
        hooks = f"{INSIDE}/freeze", f"{INSIDE}/thaw"
    pre, post = (
        f"{INSIDE}/timed {role} {hook}" for role, hook in zip(("pre", "post"), hooks, strict=True)
    )
    types = {} if way == THREE_NAMES else {"daily": "0", "monthly": "0"}
    scenario.write_sanoid_conf(
        lab,
        *sections,
        pre_snapshot_script=pre if way else None,
        post_snapshot_script=post if way else None,
        pruning_script=None,
        **types,
    )


def clean(lab: Lab, *tops: str) -> None:
    """No snapshot below the datasets, no point, nothing that the usual hooks have stored."""
    destroy = "; ".join(f"zfs destroy -r {top}@%" for top in tops)
    lab.run(
        f"{destroy}; zvmsnap prune; rm -rf /var/cache/sanoid {USUAL_DIR}/*; "
        f": > {INSIDE}/hooks.log; sync",
        check=False,
        timeout_s=scenario.ROUND_LIMIT_S,
    )


def timed(lab: Lab, command: str) -> float:
    """Seconds that a command takes, by the lab's clock."""
    said = lab.run(
        f"begun=$EPOCHREALTIME; {command} > {INSIDE}/said 2>&1 || {{ cat {INSIDE}/said >&2; "
        "exit 1; }; echo $begun $EPOCHREALTIME",
        timeout_s=scenario.ROUND_LIMIT_S,
    ).stdout
    begun_s, ended_s = map(float, said.split())
    return ended_s - begun_s


def measured(
    lab: Lab, commands: Mapping[str, Mapping[str, Any]], repeats: int, *, warm: bool
) -> Measured:
    """Seconds and peak memory of commands, run in turn."""
    asked = {"repeats": repeats, "warm": warm, "commands": commands}
    said = lab.run(
        f"python3 {INSIDE}/measured.py", stdin=json.dumps(asked), timeout_s=40 * 60.0
    ).stdout
    return Measured(**json.loads(said))


def command(*argv: str, statuses: Sequence[int] = (0,), **env: str) -> dict[str, Any]:
    """A command for `measured`."""
    return {"argv": list(argv), "env": env, "statuses": list(statuses)}


def hook(name: str, dataset: str, snapshot: str) -> dict[str, Any]:
    """A call of one of our hooks with sanoid's variables, for `measured`."""
    return command(
        f"{scenario.HOOKS}/{name}",
        SANOID_TARGET=dataset,
        SANOID_TARGETS=dataset,
        SANOID_SNAPNAME=snapshot,
        SANOID_SNAPNAMES=snapshot,
    )


@contextmanager
def listener(lab: Lab) -> Iterator[None]:
    """Listen to libvirt's events, in a process of its own."""
    pid = lab.run(
        f"nohup python3 {INSIDE}/listener.py > {INSIDE}/events 2> {INSIDE}/listener.err "
        "< /dev/null & echo $!"
    ).stdout.strip()
    lab.run(f"for _ in $(seq 600); do test -s {INSIDE}/events && exit; sleep 0.1; done; exit 1")
    try:
        yield
    finally:
        lab.run(f"kill {pid}", check=False)


def events(lab: Lab, since: int = 0) -> list[dict[str, Any]]:
    """What the listener has heard, from the line `since` on."""
    lines = lab.get(f"{INSIDE}/events").decode().splitlines()
    return [json.loads(line) for line in lines[since:]]
