"""What a recovery did, or would do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Result(StrEnum):
    """What became of one guest."""

    NEEDED = "needs recovery"
    RECOVERED = "recovered"
    UNDER_WAY = "under way"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """One guest: what was found, and what became of it; `why` where that needs words."""

    domain: str
    uuid: str
    found: tuple[str, ...]
    result: Result
    why: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that a recovery found. `problems` are left to a person."""

    outcomes: list[Outcome] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Is there nothing left for a person to do?"""
        return not self.problems and all(o.result is not Result.FAILED for o in self.outcomes)
