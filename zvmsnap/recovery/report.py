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
    """One guest: why it needs recovery, and what became of it; `why` if that needs words."""

    domain: str
    uuid: str
    findings: tuple[str, ...]
    result: Result
    why: str = ""


@dataclass(frozen=True)
class Report:
    """All that a recovery found and did. A person must see to `problems`.

    `removed` are paths. `foreign` was made by somebody else, and is only reported.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Is nothing left for a person to do?"""
        return not self.problems and all(o.result is not Result.FAILED for o in self.outcomes)
