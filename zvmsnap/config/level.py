"""How coherent a restore point can be."""

from __future__ import annotations

from enum import StrEnum


class ConsistencyLevel(StrEnum):
    """The levels, best first."""

    MEMORY = "memory"
    PAUSED = "paused"
    QUIESCED = "quiesced"
    CRASH = "crash"
    OFFLINE = "offline"

    @property
    def has_memory(self) -> bool:
        """Does a point of this level have RAM?"""
        return self in (ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED)

    @property
    def holds_guest(self) -> bool:
        """Is the guest paused, or are its file systems frozen, while ZFS takes the snapshot?"""
        return self in (ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED)

    def reaches(self, wanted: ConsistencyLevel) -> bool:
        """Is this the wanted level, or a better one? `offline` always is: it loses nothing."""
        return self is ConsistencyLevel.OFFLINE or RANK.index(self) <= RANK.index(wanted)


RANK = list(ConsistencyLevel)
