"""How much memory every command has at its peak: that of its largest process."""

from __future__ import annotations

import scenario

from bench import scene
from bench.scene import Measured
from labkit.api import Lab

FILLED_MIB = 256
_DATASET = "tank/vm/web"
_HOURLY = "autosnap_2026-11-20_03:00:00_hourly"
_AWAY = "cheap/offsite"


def measure(lab: Lab) -> Measured:
    """Every command once, on a guest whose RAM no command could keep in so little memory."""
    scene.prepare(lab)
    scenario.configure(lab)
    scene.make_guest(lab, "web", FILLED_MIB, 1)
    lab.run(f"zfs create {_AWAY}")
    zfs = scene.command("zfs", "snapshot", "-r", f"{_DATASET}@{_HOURLY}")
    commands = {
        "hooks/pre-snapshot": scene.hook("pre-snapshot", _DATASET, _HOURLY),
        "zfs snapshot, for comparison": zfs,
        "hooks/post-snapshot": scene.hook("post-snapshot", _DATASET, _HOURLY),
        "hooks/pruning": scene.hook("pruning", _DATASET, _HOURLY),
        "zvmsnap take": _command("take web --name peak"),
        "zvmsnap list": _command("list"),
        "zvmsnap show": _command("show web@peak"),
        "zvmsnap verify": _command("verify"),
        "zvmsnap verify --boot": _command("verify --boot web@peak"),
        "zvmsnap clone": _command("clone web@peak look"),
        "zvmsnap clone --destroy": _command("clone --destroy look"),
        "zvmsnap restore": _command("restore --yes web@peak"),
        "zvmsnap send": _command(f"send web {_AWAY}"),
        "zvmsnap status": _command("status"),
        "zvmsnap drop": _command("drop --yes web@peak"),
        "zvmsnap prune": _command("prune"),
        "zvmsnap recover": _command("recover"),
        "zvmsnap fetch": scene.command("sh", "-c", _fetch()),
    }
    return scene.measured(lab, commands, 1, warm=False)


def _command(words: str) -> dict[str, object]:
    return scene.command("zvmsnap", *words.split())


def _fetch() -> str:
    """Fetch is for a host that has nothing of the guest."""
    return (
        f"virsh -q destroy web; virsh -q undefine web; zfs destroy -R {_DATASET}; "
        f"rm -r {scenario.VAULT}/web; zvmsnap fetch --yes web@latest {_AWAY}"
    )
