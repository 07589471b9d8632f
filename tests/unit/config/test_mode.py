import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.config import mode
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import Mode, ModeSet, parse_mode

MEMORY, PAUSED, QUIESCED, CRASH = (
    ConsistencyLevel.MEMORY,
    ConsistencyLevel.PAUSED,
    ConsistencyLevel.QUIESCED,
    ConsistencyLevel.CRASH,
)
NAMED = [MEMORY, PAUSED, QUIESCED, CRASH]
NAMED_IN_ANY_ORDER = st.lists(st.sampled_from(NAMED), min_size=1, unique=True)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        pytest.param("memory", Mode((MEMORY,)), id="one"),
        pytest.param(
            "memory,quiesced,crash", Mode((MEMORY, QUIESCED, CRASH)), id="several, best first"
        ),
        pytest.param("crash,memory", Mode((CRASH, MEMORY)), id="as it was said, not as it ranks"),
        pytest.param(" paused , crash ", Mode((PAUSED, CRASH)), id="blanks"),
        pytest.param("quiesced,required", Mode((QUIESCED,), True), id="required"),
        pytest.param(
            "memory, paused, required", Mode((MEMORY, PAUSED), True), id="several, required"
        ),
    ],
)
def test_parse(text: str, order: Mode) -> None:
    assert parse_mode(text) == order


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "'' is no level", id="nothing"),
        pytest.param("memory,", "'' is no level", id="nothing after a comma"),
        pytest.param("ram", "'ram' is no level", id="no such level"),
        pytest.param("Memory", "'Memory' is no level", id="capitals"),
        pytest.param("memory quiesced", "'memory quiesced' is no level", id="no comma"),
        pytest.param("offline", "'offline' is no level", id="cannot be asked for"),
        pytest.param("off", "'off' is no level", id="off is for properties alone"),
        pytest.param("memory,off", "'off' is no level", id="off among levels"),
        pytest.param("required", "'required' is no level", id="required alone"),
        pytest.param("required,memory", "'required' is no level", id="required first"),
        pytest.param("memory,required,required", "'required' is no level", id="required twice"),
        pytest.param("crash,memory,crash", "names a level twice", id="twice"),
    ],
)
def test_no_order(text: str, says: str) -> None:
    with pytest.raises(ModeInvalid) as caught:
        parse_mode(text)
    assert str(caught.value).startswith(f"{text!r}: ")
    assert says in str(caught.value)
    # Where that may be said instead, those who ask say so.
    assert "or 'off'" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(NAMED_IN_ANY_ORDER, st.booleans())
def test_any_order_of_levels_is_read_as_it_was_written(
    named: list[ConsistencyLevel], required: bool
) -> None:
    text = ",".join([*named, "required"] if required else named)
    assert parse_mode(text) == Mode(tuple(named), required)


@given(st.text())
def test_any_text_is_an_order_or_refused(text: str) -> None:
    try:
        order = parse_mode(text)
    except ModeInvalid as error:
        assert repr(text) in str(error)
        return
    assert order.levels


@pytest.mark.parametrize(
    ("text", "good_enough"),
    [
        pytest.param("memory", {MEMORY}, id="memory"),
        pytest.param("paused", {MEMORY, PAUSED}, id="paused"),
        pytest.param("quiesced", {MEMORY, PAUSED, QUIESCED}, id="quiesced"),
        pytest.param("crash", {MEMORY, PAUSED, QUIESCED, CRASH}, id="crash"),
        pytest.param("memory,quiesced", {MEMORY, PAUSED, QUIESCED}, id="between two of them"),
        pytest.param("crash,memory", {MEMORY, PAUSED, QUIESCED, CRASH}, id="the worst counts"),
    ],
)
@pytest.mark.parametrize("required", [False, True])
def test_satisfied_by(text: str, good_enough: set[ConsistencyLevel], required: bool) -> None:
    order = parse_mode(f"{text},required" if required else text)
    # A guest that is off has no more than its disks.
    assert {level for level in ConsistencyLevel if order.satisfied_by(level)} == {
        *good_enough,
        ConsistencyLevel.OFFLINE,
    }


def demand(*texts: str) -> ModeSet:
    return mode.mode_set(parse_mode(text) for text in texts)


@pytest.mark.parametrize(
    ("orders", "tried"),
    [
        pytest.param([], (), id="none"),
        pytest.param(["memory"], (MEMORY,), id="one"),
        pytest.param(["memory,quiesced,crash"], (MEMORY, QUIESCED, CRASH), id="one of several"),
        pytest.param(["quiesced,memory"], (QUIESCED, MEMORY), id="as it was said"),
        pytest.param(["quiesced", "memory"], (MEMORY, QUIESCED), id="the best demanded one first"),
        pytest.param(["paused,crash", "quiesced,crash"], (PAUSED, QUIESCED, CRASH), id="merged"),
        pytest.param(["memory,crash", "quiesced"], (MEMORY, QUIESCED, CRASH), id="crash ends it"),
        pytest.param(
            ["memory,quiesced", "paused"], (MEMORY, PAUSED, QUIESCED), id="best of what is left"
        ),
        pytest.param(
            ["quiesced,memory", "quiesced"], (QUIESCED, MEMORY), id="no order is turned round"
        ),
        pytest.param(["crash", "memory"], (MEMORY, CRASH), id="crash and memory"),
    ],
)
def test_levels_of_a_demand(orders: list[str], tried: tuple[ConsistencyLevel, ...]) -> None:
    assert demand(*orders).levels == tried


@given(st.lists(NAMED_IN_ANY_ORDER, max_size=4))
def test_each_level_is_tried_once(orders: list[list[ConsistencyLevel]]) -> None:
    tried = mode.mode_set(Mode(tuple(order)) for order in orders).levels
    assert sorted(tried) == sorted({level for order in orders for level in order})
    if orders:
        best_of_each = [NAMED.index(order[0]) for order in orders]
        assert NAMED.index(tried[0]) == min(best_of_each)


@pytest.mark.parametrize(
    ("orders", "enough", "too_little"),
    [
        pytest.param([], set(ConsistencyLevel), set(), id="nothing demanded"),
        pytest.param(["quiesced"], {MEMORY, PAUSED, QUIESCED}, set(), id="one"),
        pytest.param(["quiesced", "crash"], {MEMORY, PAUSED, QUIESCED}, set(), id="all count"),
        pytest.param(["memory,required"], {MEMORY}, {PAUSED, QUIESCED, CRASH}, id="required"),
        pytest.param(
            ["paused,crash", "quiesced,required"], {MEMORY, PAUSED, QUIESCED}, {CRASH}, id="of one"
        ),
        pytest.param(
            ["quiesced,required", "memory,required"],
            {MEMORY},
            {PAUSED, QUIESCED, CRASH},
            id="required of both",
        ),
        pytest.param(["memory", "crash,required"], {MEMORY}, set(), id="required, and reached"),
    ],
)
def test_what_a_demand_is_satisfied_by_and_what_it_forbids(
    orders: list[str], enough: set[ConsistencyLevel], too_little: set[ConsistencyLevel]
) -> None:
    demanded = demand(*orders)
    assert {level for level in ConsistencyLevel if demanded.satisfied_by(level)} == enough | {
        ConsistencyLevel.OFFLINE
    }
    assert {level for level in ConsistencyLevel if demanded.forbids(level)} == too_little
    assert (demanded.minimum is None) is not any("required" in order for order in orders)


def test_the_same_order_of_several_types_is_one() -> None:
    assert demand("memory", "memory", "crash").modes == (Mode((MEMORY,)), Mode((CRASH,)))


@pytest.mark.parametrize(
    ("orders", "of_one_instant"),
    [
        pytest.param(["memory"], ["paused"], id="memory"),
        pytest.param(["memory,required"], ["paused,required"], id="required stays so"),
        pytest.param(["memory,paused,quiesced"], ["paused,quiesced"], id="paused but once"),
        pytest.param(["quiesced,crash"], ["quiesced,crash"], id="without RAM"),
        pytest.param(["quiesced", "memory"], ["quiesced", "paused"], id="each order"),
    ],
)
def test_together(orders: list[str], of_one_instant: list[str]) -> None:
    assert demand(*orders).together() == demand(*of_one_instant)


@pytest.mark.parametrize(
    ("level", "has_memory", "holds_still"),
    [
        (MEMORY, True, False),
        (PAUSED, True, True),
        (QUIESCED, False, True),
        (CRASH, False, False),
        (ConsistencyLevel.OFFLINE, False, False),
    ],
)
def test_what_a_level_means(level: ConsistencyLevel, has_memory: bool, holds_still: bool) -> None:
    assert (level.has_memory, level.holds_still) == (has_memory, holds_still)
