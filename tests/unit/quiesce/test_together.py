"""Dumps of guests that stand still until all are dumped: they end together."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from zvmsnap.common.errors import Cancelled
from zvmsnap.quiesce.together import DumpsTogether, ExpectedDump, Pace

SOON_S = 60.0
A_WHILE_S = 0.05
MIB = 1 << 20
ALL = 10**15


class Dumps:
    """Guests of one run, each of which is dumped in a thread of its own until it is told to end."""

    def __init__(self, root: Path, at_once: int, **sizes_mib: int) -> None:
        self.together = DumpsTogether(at_once, 10)
        self.cancelled = threading.Event()
        self._root = root
        self._pool = ThreadPoolExecutor(16)
        self._ends = {name: threading.Event() for name in sizes_mib}
        self._paces: dict[str, Future[Pace | None]] = {name: Future() for name in sizes_mib}
        for name, size_mib in sizes_mib.items():
            self.together.expect(name, ExpectedDump(size_mib * MIB, size_mib))

    def start(self, *names: str) -> None:
        """They are ready to be dumped."""
        for name in names:
            self._pool.submit(self._dump, name)

    def _dump(self, name: str) -> None:
        try:
            with self.together.dump(name, self._root / name, self.cancelled) as pace:
                self._paces[name].set_result(pace)
                self._ends[name].wait(SOON_S)
        except Cancelled as error:
            self._paces[name].set_exception(error)

    def begun(self, name: str) -> Pace:
        pace = self._paces[name].result(SOON_S)
        assert pace
        return pace

    def is_waiting(self, name: str) -> bool:
        try:
            self._paces[name].result(A_WHILE_S)
        except TimeoutError:
            return True
        return False

    def write(self, name: str, written_mib: int, rest_bytes: int = ALL) -> bool:
        """So much of its image is written by now; is it ahead?"""
        with (self._root / name).open("ab") as image:
            image.truncate(written_mib * MIB)
        return self.begun(name).is_ahead(rest_bytes)

    def end(self, name: str) -> None:
        self._ends[name].set()

    def close(self) -> None:
        self.cancelled.set()
        for end in self._ends.values():
            end.set()
        self._pool.shutdown()


Make = Callable[..., Dumps]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Dumps] = []

    def of(at_once: int = 8, **sizes_mib: int) -> Dumps:
        made.append(Dumps(tmp_path, at_once, **sizes_mib))
        return made[-1]

    yield of
    for each in made:
        each.close()


def test_equal_ones_begin_together_when_all_are_ready(make: Make) -> None:
    dumps = make(web=500, db=480)
    dumps.start("web")
    assert dumps.is_waiting("web")
    dumps.start("db")
    assert dumps.begun("web")
    assert dumps.begun("db")


def test_nobody_waits_for_one_that_is_not_dumped(make: Make) -> None:
    dumps = make(web=500, db=480)
    dumps.start("web")
    assert dumps.is_waiting("web")
    dumps.together.leave("db")
    assert not dumps.is_waiting("web")


def test_the_smaller_one_begins_when_the_larger_one_has_no_more_left(make: Make) -> None:
    dumps = make(web=1000, db=100)
    dumps.start("db", "web")
    dumps.begun("web")
    assert dumps.is_waiting("db")
    assert not dumps.write("web", 700)
    assert dumps.is_waiting("db")
    assert not dumps.write("web", 900)
    dumps.begun("db")


def test_who_is_ahead_is_slowed_until_the_others_are_as_far(make: Make) -> None:
    dumps = make(web=500, db=500)
    dumps.start("web", "db")
    dumps.begun("db")
    dumps.write("web", 100)
    assert not dumps.write("db", 100)
    assert dumps.write("web", 200)
    assert not dumps.write("db", 100)
    assert not dumps.write("db", 190)
    assert not dumps.write("web", 200)


def test_no_more_is_left_than_qemu_says(make: Make) -> None:
    """Of pages that were zero again."""
    dumps = make(web=500, db=500)
    dumps.start("web", "db")
    dumps.begun("web")
    assert dumps.write("db", 200)
    dumps.write("web", 100, rest_bytes=50 * MIB)
    assert not dumps.write("db", 200)


def test_nobody_is_slowed_for_one_that_has_ended(make: Make) -> None:
    dumps = make(web=500, db=500)
    dumps.start("web", "db")
    dumps.begun("web")
    assert dumps.write("db", 200)
    assert not dumps.begun("db").is_waited_for()
    dumps.end("web")
    while not dumps.begun("db").is_waited_for():
        threading.Event().wait(0.001)
    assert not dumps.write("db", 200)
    dumps.together.leave("web")  # it goes on to stand still
    assert dumps.begun("db").is_waited_for()


def test_nobody_waits_for_one_that_is_given_up(make: Make) -> None:
    dumps = make(web=500, db=500)
    dumps.start("web", "db")
    dumps.begun("web")
    assert dumps.write("db", 200)
    dumps.together.leave("web")
    assert not dumps.write("db", 200)
    assert not dumps.begun("db").is_waited_for()
    assert not dumps.begun("web").is_ahead(0)


def test_one_alone_has_no_pace_to_keep(tmp_path: Path, make: Make) -> None:
    dumps = make(web=500)
    with dumps.together.dump("web", tmp_path / "web", threading.Event()) as pace:
        assert pace is None


def test_no_more_than_so_many_and_the_smallest_last(make: Make) -> None:
    dumps = make(2, web=500, db=490, mail=10)
    dumps.start("mail", "db", "web")
    dumps.begun("web")
    dumps.begun("db")
    dumps.write("web", 499)
    dumps.write("db", 489)
    assert dumps.is_waiting("mail")
    dumps.end("db")
    dumps.begun("mail")


@pytest.mark.parametrize("guest", ["web", "db"])
def test_too_late_for_another_dump(make: Make, guest: str) -> None:
    """As soon as one is dumped that is to stand still after that."""
    dumps = make(web=500, db=10)
    assert not dumps.together.is_too_late_to_dump(guest)
    dumps.start("web", "db")
    dumps.begun("web")
    assert dumps.together.is_too_late_to_dump(guest) is (guest == "db")


def test_a_dump_that_fails_keeps_nobody(tmp_path: Path, make: Make) -> None:
    dumps = make(web=500, db=10)
    dumps.start("db")
    with (
        pytest.raises(OSError, match="no dump"),
        dumps.together.dump("web", tmp_path / "web", threading.Event()),
    ):
        raise OSError("no dump")
    assert not dumps.is_waiting("db")
    assert not dumps.together.is_too_late_to_dump("db")


def test_cancelled_while_it_waits(make: Make) -> None:
    dumps = make(web=500, db=480)
    dumps.start("web")
    assert dumps.is_waiting("web")
    dumps.cancelled.set()
    with pytest.raises(Cancelled, match="interrupted while other guests were dumped"):
        dumps.begun("web")


@pytest.mark.parametrize(
    ("at_once", "sizes", "refused"),
    [
        pytest.param(8, {"a": 1000, "b": 1000}, set(), id="all at once"),
        pytest.param(1, {"a": 1000, "b": 9}, set(), id="the second one is small"),
        pytest.param(1, {"a": 1000, "b": 11}, {"a"}, id="the second one is not"),
        pytest.param(2, {"a": 1, "b": 2, "c": 3, "d": 4}, set(), id="two wait for two"),
        pytest.param(2, {"a": 1, "b": 2, "c": 30, "d": 40, "e": 50}, {"e"}, id="the largest"),
        pytest.param(2, {"a": 9, "b": 9, "c": 30, "d": 40, "e": 50}, {"d", "e"}, id="two of five"),
        pytest.param(1, {"a": 50, "b": 50, "c": 50}, {"b", "c"}, id="one is left"),
    ],
)
def test_whom_others_would_wait_for_too_long(
    make: Make, at_once: int, sizes: dict[str, int], refused: set[str]
) -> None:
    dumps = make(at_once, **sizes)
    reasons = {name: dumps.together.why_not(name) for name in sizes}
    assert {name for name, why in reasons.items() if why} == refused
    dumps.together.leave(min(sizes))  # decided once: the others go by it
    assert {name: dumps.together.why_not(name) for name in sizes} == reasons


def test_what_is_said_of_it(make: Make) -> None:
    dumps = make(1, web=500, db=300)
    assert dumps.together.why_not("web") == (
        "2 guests would be paused together, and 1 are dumped at once (limits.parallel_dumps): they "
        "would wait for about 300.0 s (limits.memory_max_pause_s is 10)"
    )
