"""RAM dumps that end together: those of the guests of one run that stand still for its snapshot.

Such a guest stands still from the end of its own dump until the last one of the run has ended. If
one is dumped after the other, the first stands still for whole dumps; if all begin at once, the
smallest does until the largest is written. So the larger ones begin first, the others begin when
these have no more left than they have, and who gets ahead is slowed down:

| the guest                                                            | its dump               |
|----------------------------------------------------------------------|------------------------|
| others of the run are not ready to be dumped                         | waits                  |
| as many as `at_once` are dumped                                      | waits                  |
| one with more to write has not begun, or has more left than it has   | waits                  |
| is dumped, and has less left than another one                        | is slowed to a trickle |
| any other                                                            | goes on                |

The one with most left is never slowed, so they end no later than their disk allows; and they share
that, however fast it is. A slowed guest runs. Only `at_once` can end together: the smallest are
dumped when others stand still already. If that takes too long, some get another level:

| the dumps that others have to wait for                               | who is not dumped      |
|----------------------------------------------------------------------|------------------------|
| none: no more guests than `at_once`                                  | nobody                 |
| take no longer than the limit                                        | nobody                 |
| take longer                                                          | the largest, one after |
|                                                                      | the other, until the   |
|                                                                      | rest fits              |
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from zvmsnap.common import waiting
from zvmsnap.common.errors import Cancelled

_POLL_S = 0.2
# Two guests that have nearly as much to write begin at once.
_NEARLY = 1.1
# Who is ahead by less is not slowed: a disk writes so much between two looks, or a small part of a
# small image.
_AHEAD_BYTES = 16 << 20
_AHEAD_PART = 20


@dataclass(frozen=True)
class ExpectedDump:
    """How large an image will be, and how long writing it will take."""

    image_bytes: int
    takes_s: float


class _State(Enum):
    EXPECTED = auto()
    READY = auto()
    DUMPED = auto()
    STANDS_STILL = auto()


@dataclass
class _Member:
    expected: ExpectedDump
    state: _State = _State.EXPECTED
    image: Path = field(default_factory=Path)
    rest_bytes: int | None = None

    @property
    def left_bytes(self) -> int:
        """What is left to write. The kernel knows how long the file is, however busy QEMU is."""
        try:
            written_bytes = self.image.stat().st_size
        except OSError:
            written_bytes = 0
        left_bytes = max(self.expected.image_bytes - written_bytes, 0)
        return left_bytes if self.rest_bytes is None else min(left_bytes, self.rest_bytes)


class Pace:
    """How one dump goes on beside the others."""

    def __init__(self, dumps: DumpsTogether, guest: str) -> None:
        self._dumps = dumps
        self._guest = guest

    def is_ahead(self, rest_bytes: int) -> bool:
        """Has it less left than another one? `rest_bytes`: of QEMU's pass over its RAM."""
        return self._dumps.is_ahead(self._guest, rest_bytes)

    def is_waited_for(self) -> bool:
        """Does another one stand still already?"""
        return self._dumps.do_others_stand_still(self._guest)


class DumpsTogether:
    """The guests of one run that are to stand still. Guests are named by UUID.

    Each is `expect`ed before the first one is dumped: the freeze barrier sees to that. `at_once`:
    how many are dumped at once; `limit_s`: how long others may stand still for those that are left.
    """

    def __init__(self, at_once: int, limit_s: float) -> None:
        self.at_once = at_once
        self._limit_s = limit_s
        self._members: dict[str, _Member] = {}
        self._refusals: Mapping[str, str] | None = None
        self._changed = threading.Condition()

    def expect(self, guest: str, dump: ExpectedDump) -> None:
        """It is to be dumped."""
        with self._changed:
            self._members[guest] = _Member(dump)

    def leave(self, guest: str) -> None:
        """Nobody waits for its dump any more, whatever it does. After a dump it stands still."""
        with self._changed:
            member = self._members.get(guest)
            if member and member.state is not _State.STANDS_STILL:
                del self._members[guest]
            self._changed.notify_all()

    def why_not(self, guest: str) -> str:
        """Why it is not to be dumped, "" if it is; when all are expected."""
        with self._changed:
            if self._refusals is None:
                self._refusals = self._refused()
            return self._refusals.get(guest, "")

    def _refused(self) -> dict[str, str]:
        refused: dict[str, str] = {}
        left = sorted(self._members, key=self._size, reverse=True)
        while (wait_s := self._waited_s(left[self.at_once :])) > self._limit_s:
            refused[left.pop(0)] = (
                f"{len(left)} guests would be paused together, and {self.at_once} are dumped "
                f"at once (limits.parallel_dumps): they would wait for about {wait_s:.1f} s "
                f"(limits.memory_max_pause_s is {self._limit_s:g})"
            )
        return refused

    def _waited_s(self, guests: list[str]) -> float:
        return sum(self._members[guest].expected.takes_s for guest in guests)

    @contextmanager
    def dump(self, guest: str, image: Path, cancelled: threading.Event) -> Iterator[Pace | None]:
        """Dump the RAM of a guest when it is its turn; None if it is alone. Raises Cancelled."""
        with self._changed:
            member = self._members[guest]
            member.image, member.state = image, _State.READY
            self._changed.notify_all()
            while not self._is_its_turn(guest):
                if cancelled.is_set():
                    raise Cancelled("interrupted while other guests were dumped")
                waiting.wait(self._changed, _POLL_S)
            member.state = _State.DUMPED
            self._changed.notify_all()
            is_alone = len(self._members) == 1
        try:
            yield None if is_alone else Pace(self, guest)
        except BaseException:
            self.leave(guest)
            raise
        with self._changed:
            member.state = _State.STANDS_STILL
            self._changed.notify_all()

    def _is_its_turn(self, guest: str) -> bool:
        if self._in(_State.EXPECTED) or len(self._in(_State.DUMPED)) >= self.at_once:
            return False
        if max(self._in(_State.READY), key=self._size) != guest:
            return False
        nearly_bytes = self._members[guest].expected.image_bytes * _NEARLY
        return all(self._members[one].left_bytes <= nearly_bytes for one in self._in(_State.DUMPED))

    def is_ahead(self, guest: str, rest_bytes: int) -> bool:
        """As Pace.is_ahead."""
        with self._changed:
            member = self._members.get(guest)
            if not member:
                return False
            member.rest_bytes = rest_bytes
            nearly_bytes = min(_AHEAD_BYTES, member.expected.image_bytes // _AHEAD_PART)
            own_bytes = member.left_bytes + nearly_bytes
            dumped = [self._members[one] for one in self._in(_State.DUMPED)]
            self._changed.notify_all()  # who is ready may begin now
            return any(other.left_bytes > own_bytes for other in dumped)

    def do_others_stand_still(self, guest: str) -> bool:
        """As Pace.is_waited_for."""
        with self._changed:
            return any(one != guest for one in self._in(_State.STANDS_STILL))

    def is_too_late_to_dump(self, guest: str) -> bool:
        """Would others stand still while this guest is dumped by itself?"""
        with self._changed:
            begun = (*self._in(_State.DUMPED), *self._in(_State.STANDS_STILL))
            return any(one != guest for one in begun)

    def _in(self, state: _State) -> list[str]:
        return [guest for guest, member in self._members.items() if member.state is state]

    def _size(self, guest: str) -> tuple[int, str]:
        return self._members[guest].expected.image_bytes, guest
