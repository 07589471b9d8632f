"""The matrix: what may go wrong, at which step, and by which way all is well again.

| route    | who brings the guest back                                      |
|----------|----------------------------------------------------------------|
| guard    | the guard that pre has started; nobody does anything           |
| recover  | the guard is killed too, then somebody calls `zvmsnap recover` |
| next run | the guard is killed too, then sanoid runs again an hour later  |
| boot     | the machine starts, with zvmsnap-recover.service               |
"""

from __future__ import annotations

from dataclasses import dataclass

PRE = (
    "staging",
    "definition",
    "dump",
    "dump under way",
    "overlay made",
    "overlay opened",
    "read header",
    "frozen",
)
POST = ("commit", "release vda", "release vdb", "tidy", "store", "publish", "close")
ROWS = (*PRE, *POST)
# Not a step: the hook is not stopped there, but what libvirt writes the RAM image with.
UNDER_WAY = "dump under way"
# Nor there: libvirtd is stopped when RAM is written, and QEMU has not opened an overlay yet.
OVERLAY_MADE = "overlay made"
# The same at the last overlay: QEMU has opened the others, and uses none of them yet.
OVERLAY_OPENED = "overlay opened"

POWER_CUT = "power cut"
SNAPSHOT_REFUSED = "snapshot refused"
STAGING_FULL = "staging full"
VAULT_FULL = "vault full"
VAULT_GONE = "vault not mounted"

# Name, and what stands above its column.
COLUMNS = {
    "hook KILL": "hook -9",
    "sanoid KILL": "sanoid -9",
    "hook TERM": "hook -15",
    "guest destroyed": "destroy",
    "guest shut off": "shut off",
    "libvirtd TERM": "lvd -15",
    "libvirtd KILL": "lvd -9",
    "qemu KILL": "qemu -9",
    POWER_CUT: "power",
    STAGING_FULL: "stg full",
    VAULT_FULL: "vlt full",
    VAULT_GONE: "no vault",
    SNAPSHOT_REFUSED: "no snap",
}
FAULTS = tuple(COLUMNS)

GUARD, RECOVER, NEXT_RUN, BOOT = "guard", "recover", "next run", "boot"
ROTATED = (GUARD, RECOVER, NEXT_RUN)

# Whoever asks libvirt while it is stopped hangs, and its end is waited for by systemd.
_WITH_LIBVIRTD_STOPPED = ("hook KILL", "sanoid KILL", "libvirtd KILL", "qemu KILL", POWER_CUT)

# The rows at which a fault of the vault is a situation of its own.
_VAULT_ROWS = ("frozen", "tidy", "store", "publish", "close")


@dataclass(frozen=True)
class Cell:
    """A fault at a step, and the route out of it."""

    row: str
    fault: str
    route: str

    @property
    def id(self) -> str:
        """As it is named on the command line."""
        return f"{self.row}:{self.fault}"

    @property
    def from_a_state(self) -> bool:
        """May it begin from a saved state of its row? Saving flushes what a power cut would eat."""
        return self.fault != POWER_CUT


def why_not(row: str, fault: str) -> str | None:
    """Why that cell does not exist; None if it does."""
    if row == OVERLAY_MADE and fault not in _WITH_LIBVIRTD_STOPPED:
        return "libvirtd is stopped there: the same as `dump under way`"
    if row == OVERLAY_OPENED and fault != "libvirtd KILL":
        return "whoever else ends, libvirtd or QEMU itself sees to it: the same as `overlay made`"
    if fault == SNAPSHOT_REFUSED and row in POST:
        return "the snapshot was taken before post began"
    if fault in (VAULT_FULL, VAULT_GONE) and row not in _VAULT_ROWS:
        same = "frozen" if row in PRE else "tidy"
        return f"nothing looks at the vault before `store`: the same as `{same}`"
    if fault == STAGING_FULL and row in ("store", "publish", "close"):
        return "nothing is written to staging any more"
    return None


def cells() -> list[Cell]:
    """All cells, row by row. Routes take turns in each column, which each begins with another."""
    routes = {}
    for number, fault in enumerate(FAULTS):
        existing = [row for row in ROWS if why_not(row, fault) is None]
        for turn, row in enumerate(existing, number):
            routes[row, fault] = BOOT if fault == POWER_CUT else ROTATED[turn % len(ROTATED)]
    return [
        Cell(row, fault, routes[row, fault])
        for row in ROWS
        for fault in FAULTS
        if (row, fault) in routes
    ]


# What cuts deepest, of each kind: who dies, what is lost, who recovers.
_FEW = (
    "dump under way:hook KILL",
    "overlay opened:libvirtd KILL",
    "frozen:sanoid KILL",
    "release vdb:power cut",
    "store:vault full",
)


def select(wanted: str) -> list[Cell]:
    """`all`, `few`, or parts of ids with commas between."""
    existing = cells()
    match wanted:
        case "all":
            return existing
        case "few":
            return [cell for cell in existing if cell.id in _FEW]
        case _:
            parts = wanted.split(",")
            return [cell for cell in existing if any(part in cell.id for part in parts)]
