"""The tables of retention/keep_memory."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.config.keep import Keep, parse_keep
from zvmsnap.config.properties import KEEP_MEMORY
from zvmsnap.points.manifest import Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint, in_order
from zvmsnap.retention import keep_memory
from zvmsnap.retention.keep_memory import Rule

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
RAM = Memory("memory.img", "raw", "none", 4, 4, "00")
Build = Callable[..., Manifest]
Points = Callable[..., list[RestorePoint]]


@pytest.fixture(scope="session")
def points(manifest: Build) -> Points:
    """Points of one guest, the oldest first, by how many hours ago their clock said they were."""

    def build(
        hours: Sequence[float], without: Iterable[int] = (), pools: str = "ttttttttttttt"
    ) -> list[RestorePoint]:
        return [
            RestorePoint(
                Path(f"/v/web/p{number}"),
                manifest(
                    created=(NOW - timedelta(hours=ago)).isoformat(),
                    memory=None if number in without else RAM,
                    snapshots=(SnapshotRef(f"{pools[number]}/web", f"p{number}", number, number),),
                ),
            )
            for number, ago in enumerate(hours)
        ]

    return build


def gone(points: Iterable[RestorePoint], *texts: str) -> list[int]:
    """The numbers of those whose RAM goes by these values."""
    rules = [Rule(parse_keep(text)) for text in texts]
    going = keep_memory.going(points, lambda _: rules, NOW)
    return [point.manifest.snapshots[0].guid for point in going]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["all"], [], id="all"),
        pytest.param(["4"], [], id="as many as there are"),
        pytest.param(["3"], [0], id="3"),
        pytest.param(["1"], [0, 1, 2], id="1"),
        pytest.param(["30h"], [], id="30 h"),
        pytest.param(["29h"], [0], id="29 h"),
        pytest.param(["1d"], [0], id="1 d"),
        pytest.param(["1h"], [0, 1, 2], id="the newest stays at any age"),
        pytest.param(["1", "20h"], [0], id="the age keeps longer"),
        pytest.param(["3", "1h"], [0], id="the number keeps longer"),
        pytest.param(["1", "all"], [], id="all keeps longest"),
        pytest.param([], [], id="nothing is known"),
    ],
)
def test_values(points: Points, texts: list[str], expected: list[int]) -> None:
    assert gone(points([30, 20, 10, 5]), *texts) == expected


def test_a_number_counts_what_has_ram_and_not_its_age(points: Points) -> None:
    """The dumps of the newest points failed: the only RAM is weeks old."""
    assert gone(points([900, 3, 2, 1], without=[1, 2, 3]), "1") == []
    assert gone(points([950, 900, 3, 2, 1], without=[2, 3, 4]), "1") == [0]
    assert gone(points([900, 3, 2, 1], without=[1, 2, 3]), "36h") == []


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        pytest.param([10, 480_000, 8, 1], [], id="a point says 1970"),
        pytest.param([10, -40_000, 8, 1], [], id="a point says 2031"),
        pytest.param(
            [40, -40_000, 39, 1], [0, 1, 2], id="the one that says 2031 ages with the next"
        ),
        pytest.param([40, 39, 38, -40_000], [0, 1, 2], id="the newest says 2031"),
        pytest.param([-5, -4, -3, -2], [], id="the clock was set back"),
        pytest.param([40_040, 40_039, 40_038, 40_037], [0, 1, 2], id="the clock is ahead"),
    ],
)
def test_clocks_that_are_wrong(points: Points, hours: list[float], expected: list[int]) -> None:
    assert gone(points(hours), "36h") == expected
    assert gone(points(hours), "2") == [0, 1]  # whatever the clock says


TYPES = [
    pytest.param({KEEP_MEMORY: "24"}, ["hourly", "daily"], ["24"], id="one for all"),
    pytest.param(
        {KEEP_MEMORY: "24", f"{KEEP_MEMORY}:daily": "14d"},
        ["hourly", "daily"],
        ["14d daily", "24"],
        id="one of its own",
    ),
    pytest.param({f"{KEEP_MEMORY}:daily": "7"}, ["hourly"], ["all"], id="of another type"),
    pytest.param({}, ["manual"], ["all"], id="the configuration"),
    pytest.param({KEEP_MEMORY: "2w"}, ["hourly"], ["all"], id="what is none keeps all"),
    pytest.param(
        {KEEP_MEMORY: "1", f"{KEEP_MEMORY}:hourly": ""}, ["hourly"], ["all hourly"], id="empty"
    ),
]


@pytest.mark.parametrize(("values", "types", "expected"), TYPES)
def test_values_of_a_dataset(values: dict[str, str], types: list[str], expected: list[str]) -> None:
    assert sorted({str(rule) for rule in keep_memory.rules(values, types, Keep())}) == expected


def test_the_default_counts_where_nothing_is_set() -> None:
    assert list(keep_memory.rules({}, ["hourly"], Keep(3))) == [Rule(Keep(3))]
    assert list(keep_memory.rules({KEEP_MEMORY: "all"}, ["hourly"], Keep(3))) == [Rule(Keep())]


def test_each_type_has_a_count_of_its_own(points: Points) -> None:
    """Every third point is daily, too: 2 of all types but daily, and 2 daily ones."""
    own = points([9, 8, 7, 6, 5, 4, 3, 2, 1])

    def rules_of(point: RestorePoint) -> list[Rule]:
        is_daily = point.manifest.snapshots[0].guid % 3 == 0
        return [Rule(Keep(2)), *([Rule(Keep(2), "daily")] if is_daily else [])]

    going = keep_memory.going(own, rules_of, NOW)
    assert [own.index(point) for point in going] == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("texts", "number", "until"),
    [
        (["all"], 0, "as long as the point"),
        (["3"], 1, "until 1 more points have RAM (3)"),
        (["3"], 3, "until 3 more points have RAM (3)"),
        (["31h"], 0, "for 0 d 1 h more (31h)"),
        (["3d", "4"], 0, "for 1 d 18 h more (3d), and until 1 more points have RAM (4)"),
        (["3d", "4", "all"], 0, "as long as the point"),
        (["1h"], 3, "until a newer point has RAM"),
        (["1h"], 0, "until the next point, or prune"),
        ([], 0, "as long as the point: what its datasets ask for is not known"),
    ],
)
def test_until_when(points: Points, texts: list[str], number: int, until: str) -> None:
    rules = [Rule(parse_keep(text)) for text in texts]
    found = keep_memory.standings(points([30, 20, 10, 5]), lambda _: rules, NOW)
    (own,) = (each for each in found if each.point.manifest.snapshots[0].guid == number)
    assert own.until == until


# -- what always holds

HOURS = st.lists(st.integers(-60, 60) | st.sampled_from([-40_000, 480_000]), max_size=12)
KEEPS = (
    st.just(Keep())
    | st.integers(1, 8).map(Keep)
    | st.integers(1, 60).map(lambda hours: Keep(age=timedelta(hours=hours)))
)
RULES = st.lists(st.builds(Rule, KEEPS, st.sampled_from(["", "daily"])), max_size=3)
RULES_OF = st.lists(RULES, min_size=12, max_size=12)


def by_number(rules: Sequence[list[Rule]]) -> Callable[[RestorePoint], list[Rule]]:
    return lambda point: rules[point.manifest.snapshots[0].guid]


@given(hours=HOURS, rules=RULES_OF, without=st.sets(st.integers(0, 11)), data=st.data())
def test_the_sequence_of_the_points_does_not_matter(
    points: Points,
    hours: list[int],
    rules: list[list[Rule]],
    without: set[int],
    data: st.DataObject,
) -> None:
    own = points(hours, without, data.draw(st.text("tu", min_size=12, max_size=12)))
    going = keep_memory.going(own, by_number(rules), NOW)
    assert keep_memory.going(data.draw(st.permutations(own)), by_number(rules), NOW) == going
    with_ram = in_order(point for point in own if point.manifest.memory)
    assert all(point in with_ram[:-1] for point in going)  # the newest never


@given(hours=HOURS, rules=RULES_OF, is_right=st.booleans())
def test_a_second_look_changes_nothing(
    points: Points, hours: list[int], rules: list[list[Rule]], is_right: bool
) -> None:
    """Of any clock where all ask for the same; of a right clock whatever each asks for."""
    own = points(sorted(map(abs, hours), reverse=True) if is_right else hours)
    rules_of = by_number(rules) if is_right else lambda _: rules[0]
    going = keep_memory.going(own, rules_of, NOW)
    left = [point for point in own if point not in going]
    assert keep_memory.going(left, rules_of, NOW) == []


def longer(keep: Keep, more: int) -> Keep:
    return Keep(keep.points + more) if keep.points else Keep(age=keep.age + timedelta(hours=more))


@given(hours=HOURS, rules=RULES_OF, more=st.integers(0, 5), which=st.integers(0, 11))
def test_who_asks_for_more_keeps_what_was_kept_and_maybe_more(
    points: Points, hours: list[int], rules: list[list[Rule]], more: int, which: int
) -> None:
    own = points(hours)
    going = keep_memory.going(own, by_number(rules), NOW)
    for asked in (
        [
            Rule(longer(rule.keep, more) if rule.keep.has_end else rule.keep, rule.type)
            for rule in rules[which]
        ],
        [Rule(Keep(), rule.type) for rule in rules[which]],
    ):
        changed = [*rules[:which], asked, *rules[which + 1 :]]
        now_going = keep_memory.going(own, by_number(changed), NOW)
        assert all(point in going for point in now_going)


@given(hours=HOURS, rules=RULES_OF, later=st.integers(0, 100))
def test_time_alone_brings_nothing_back(
    points: Points, hours: list[int], rules: list[list[Rule]], later: int
) -> None:
    past = [max(0, ago) for ago in hours]  # no point is of the future
    own = points(past)
    going = keep_memory.going(own, by_number(rules), NOW)
    then = keep_memory.going(own, by_number(rules), NOW + timedelta(hours=later))
    assert all(point in then for point in going)
