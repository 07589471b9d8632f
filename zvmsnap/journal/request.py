"""What a caller asks of a hook."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common.snapshot_name import run_of, type_or_manual


class Role(StrEnum):
    """Which of sanoid's hooks is running; told by our argument, as SANOID_SCRIPT may be unset."""

    PRE = "pre"
    POST = "post"
    PRUNE = "prune"


@dataclass(frozen=True)
class HookCall:
    """One call of a hook: which datasets, which bare snapshot names, did pre fail.

    `unnamed`: the caller does not say what its snapshots are called; `names` are made up.
    """

    role: Role
    datasets: tuple[str, ...]
    names: tuple[str, ...]
    pre_failed: bool = False
    unnamed: bool = False

    @property
    def run(self) -> str:
        """The name that all snapshot names of this call share."""
        return run_of(self.names[0])

    @property
    def types(self) -> tuple[str, ...]:
        """Hourly, daily ...: the types of its snapshots; `manual` where a name has none."""
        return tuple(dict.fromkeys(type_or_manual(name) for name in self.names))
