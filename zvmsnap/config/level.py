"""The levels of a restore point, best first."""

from __future__ import annotations

from enum import StrEnum


class ConsistencyLevel(StrEnum):
    """How coherent a point is, best first."""

    MEMORY = "memory"
    PAUSED = "paused"
    QUIESCED = "quiesced"
    CRASH = "crash"
    OFFLINE = "offline"

    @property
    def has_memory(self) -> bool:
        """Is RAM part of it?"""
        return self in (ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED)

    @property
    def holds_still(self) -> bool:
        """Does the guest stand still, or its file systems, while ZFS takes the snapshot?"""
        return self in (ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED)

    def reaches(self, wanted: ConsistencyLevel) -> bool:
        """Is it that level, or a better one? What is off is as good as can be."""
        return self is ConsistencyLevel.OFFLINE or RANK.index(self) <= RANK.index(wanted)


RANK = list(ConsistencyLevel)
