"""Modes: the levels that a restore point may have, as administrators ask for them.

| level    | how                                                                  |
|----------|----------------------------------------------------------------------|
| memory   | RAM is dumped live, writes go to overlays, which are merged          |
| paused   | RAM is dumped live; the guest is paused until ZFS has snapshotted    |
| quiesced | its agent freezes the file systems until ZFS has snapshotted         |
| crash    | its disks as after a power cut, its definition, its firmware         |
| offline  | the guest is off                                                     |

A mode lists levels, best first: `memory,quiesced,crash`. The first level that the guest can reach
is taken. If it reaches none, the point is of level crash. In this case the hook fails if something
went wrong, but not if such a guest cannot have more (a disk elsewhere, no agent). If the last word
is `required`, the hook fails in both cases, and no point is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.config.level import RANK, ConsistencyLevel
from zvmsnap.config.spelling import nearest

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
    """Levels, best first; `required`: no point is made of less."""

    levels: tuple[ConsistencyLevel, ...]
    required: bool = False

    @property
    def minimum(self) -> ConsistencyLevel:
        """The lowest of the levels."""
        return max(self.levels, key=RANK.index)

    def __str__(self) -> str:
        return ",".join((*self.levels, *([_REQUIRED] if self.required else [])))

    def satisfied_by(self, reached: ConsistencyLevel) -> bool:
        """Is that level at least the lowest of these?"""
        return reached.reaches(self.minimum)


@dataclass(frozen=True)
class ModeSet:
    """The modes of one guest in one run: one for each type of snapshot (hourly, daily)."""

    modes: tuple[Mode, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.modes))

    @property
    def levels(self) -> tuple[ConsistencyLevel, ...]:
        """The levels to try, in this sequence. The first that is reached serves all modes.

        The sequence within each mode is kept, and `crash` of one mode does not come before
        `quiesced` of another.
        """
        merged: list[ConsistencyLevel] = []
        remaining = [mode.levels for mode in self.modes]
        while firsts := [levels[0] for levels in remaining if levels]:
            best = min(firsts, key=RANK.index)
            merged.append(best)
            remaining = [
                tuple(level for level in levels if level is not best) for levels in remaining
            ]
        return tuple(merged)

    @property
    def minimum(self) -> ConsistencyLevel | None:
        """No point is made of less than this level; None if any will do."""
        return min(
            (mode.minimum for mode in self.modes if mode.required),
            key=RANK.index,
            default=None,
        )

    def satisfied_by(self, reached: ConsistencyLevel) -> bool:
        """Does that level satisfy all modes?"""
        return all(mode.satisfied_by(reached) for mode in self.modes)

    def forbids(self, reached: ConsistencyLevel) -> bool:
        """Is that level less than one that is required?"""
        return self.minimum is not None and not reached.reaches(self.minimum)

    def with_paused_for_memory(self) -> ModeSet:
        """The same for snapshots that are taken at once, maybe of several guests at one instant.

        Either level has RAM that fits the disks, so who requires `memory` gets it with `paused`,
        too. With `memory`, the overlays of each guest begin when its own dump ends. Paused guests
        are paused together, until ZFS has snapshotted the disks of all of them.
        """
        return ModeSet(
            tuple(Mode(_without_memory(mode.levels), mode.required) for mode in self.modes)
        )


def _without_memory(levels: Iterable[ConsistencyLevel]) -> tuple[ConsistencyLevel, ...]:
    replaced = (
        ConsistencyLevel.PAUSED if level is ConsistencyLevel.MEMORY else level for level in levels
    )
    return tuple(dict.fromkeys(replaced))


def parse_mode(text: str) -> Mode:
    """Read `memory,quiesced,crash` or `memory,required`. Raises ModeInvalid."""
    words = [word.strip() for word in text.split(",")]
    required = len(words) > 1 and words[-1] == _REQUIRED
    if required:
        words.pop()
    named = [str(level) for level in _NAMED]
    for word in words:
        if word not in named:
            near = nearest(word, [*named, _REQUIRED])
            raise ModeInvalid(
                f"{text!r}: {word!r} is no level{near and f' (is {near} meant?)'}; say "
                f"{', '.join(named)}, best first, and {_REQUIRED!r} last if nothing less will do"
            )
    if len(set(words)) != len(words):
        raise ModeInvalid(f"{text!r}: names a level twice")
    return Mode(tuple(ConsistencyLevel(word) for word in words), required)


def mode_set(modes: Iterable[Mode]) -> ModeSet:
    """The modes of all types and datasets, each once."""
    return ModeSet(tuple(dict.fromkeys(modes)))
