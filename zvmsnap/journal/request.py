"""What the caller of a hook requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common.snapshot_name import run_of, type_or_manual


class Role(StrEnum):
    """Which of sanoid's hooks runs; an argument says it, as SANOID_SCRIPT may be unset."""

    PRE = "pre"
    POST = "post"
    PRUNE = "prune"


@dataclass(frozen=True)
class HookCall:
    """One call of a hook: datasets, snapshot names without dataset, and whether pre failed.

    `unnamed`: the caller does not say what its snapshots are called; `names` are made up.
    """

    role: Role
    datasets: tuple[str, ...]
    names: tuple[str, ...]
    pre_failed: bool = False
    unnamed: bool = False

    @property
    def run(self) -> str:
        """What all snapshot names of this call have in common; "" if there are none."""
        return run_of(self.names[0]) if self.names else ""

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its snapshots: hourly, daily ...; `manual` for a name without one."""
        return tuple(dict.fromkeys(type_or_manual(name) for name in self.names))
