"""What a point must be: levels of coherence, and the orders of them that administrators demand.

| level    | how                                                                  |
|----------|----------------------------------------------------------------------|
| memory   | RAM is dumped live, writes go to overlays, which are merged          |
| paused   | RAM is dumped live; the guest stands still until ZFS has snapshotted |
| quiesced | its agent freezes the file systems until ZFS has snapshotted         |
| crash    | its disks as after a power cut, its definition, firmware             |
| offline  | the guest is off                                                     |

An order names levels, best first: `memory,quiesced,crash`. The first one that can be reached is
taken. When none can be, the point is of level crash, and the hook fails if something went wrong,
but not if such a guest cannot have more (a disk elsewhere, no agent). If the last word is
`required`, the hook fails either way, and there is no point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.config.level import RANK, ConsistencyLevel

OFF = "off"
_REQUIRED = "required"
_NAMED = (
    ConsistencyLevel.MEMORY,
    ConsistencyLevel.PAUSED,
    ConsistencyLevel.QUIESCED,
    ConsistencyLevel.CRASH,
)


@dataclass(frozen=True)
class Mode:
    """Levels, best first; `required`: none of them is not good enough."""

    levels: tuple[ConsistencyLevel, ...]
    required: bool = False

    @property
    def minimum(self) -> ConsistencyLevel:
        """The last resort."""
        return max(self.levels, key=RANK.index)

    def satisfied_by(self, reached: ConsistencyLevel) -> bool:
        """Is that level one of these, or better than the last resort?"""
        return reached.reaches(self.minimum)


@dataclass(frozen=True)
class ModeSet:
    """All that is demanded of one guest in one moment: one order for each type of snapshot."""

    modes: tuple[Mode, ...]

    @property
    def levels(self) -> tuple[ConsistencyLevel, ...]:
        """Which levels to try, and in which order: the best demanded one is taken once for all.

        No order is turned round, and `crash` of one order does not come before `quiesced` of
        another.
        """
        found: list[ConsistencyLevel] = []
        left = [order.levels for order in self.modes]
        while firsts := [levels[0] for levels in left if levels]:
            best = min(firsts, key=RANK.index)
            found.append(best)
            left = [tuple(level for level in levels if level is not best) for levels in left]
        return tuple(found)

    @property
    def minimum(self) -> ConsistencyLevel | None:
        """A point of less than that is not wanted; None if any is."""
        return min(
            (order.minimum for order in self.modes if order.required),
            key=RANK.index,
            default=None,
        )

    def satisfied_by(self, reached: ConsistencyLevel) -> bool:
        """Is it what all orders ask for?"""
        return all(order.satisfied_by(reached) for order in self.modes)

    def forbids(self, reached: ConsistencyLevel) -> bool:
        """Is it so little that one order would rather have no point?"""
        return self.minimum is not None and not reached.reaches(self.minimum)

    def together(self) -> ModeSet:
        """The same for several guests at one instant.

        Each guest's overlays begin at an instant of its own, when its dump ends; guests that
        stand still do so together, until ZFS has snapshotted all of them. So `memory` becomes
        `paused`.
        """
        return ModeSet(
            tuple(
                Mode(
                    tuple(
                        dict.fromkeys(
                            ConsistencyLevel.PAUSED if level is ConsistencyLevel.MEMORY else level
                            for level in order.levels
                        )
                    ),
                    order.required,
                )
                for order in self.modes
            )
        )


def parse_mode(text: str) -> Mode:
    """Read `memory,quiesced,crash` or `memory,required`. Raises ModeInvalid."""
    words = [word.strip() for word in text.split(",")]
    required = len(words) > 1 and words[-1] == _REQUIRED
    if required:
        words.pop()
    named = [str(level) for level in _NAMED]
    for word in words:
        if word not in named:
            raise ModeInvalid(
                f"{text!r}: {word!r} is no level; say {', '.join(named)}, best first, "
                f"{_REQUIRED!r} last if nothing less will do"
            )
    if len(set(words)) != len(words):
        raise ModeInvalid(f"{text!r}: names a level twice")
    return Mode(tuple(ConsistencyLevel(word) for word in words), required)


def mode_set(orders: Iterable[Mode]) -> ModeSet:
    """Put the orders of all types and datasets together."""
    return ModeSet(tuple(dict.fromkeys(orders)))
