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
    ("text", "mode"),
    [
        pytest.param("memory", Mode((MEMORY,)), id="one"),
        pytest.param(
            "memory,quiesced,crash", Mode((MEMORY, QUIESCED, CRASH)), id="several, best first"
        ),
        pytest.param("crash,memory", Mode((CRASH, MEMORY)), id="as written, not by rank"),
        pytest.param(" paused , crash ", Mode((PAUSED, CRASH)), id="blanks"),
        pytest.param("quiesced,required", Mode((QUIESCED,), True), id="required"),
        pytest.param(
            "memory, paused, required", Mode((MEMORY, PAUSED), True), id="several, required"
        ),
    ],
)
def test_parse(text: str, mode: Mode) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "'' is no level", id="nothing"),
        pytest.param("memory,", "'' is no level", id="nothing after a comma"),
        pytest.param("ram", "'ram' is no level", id="no such level"),
        pytest.param("Memory", "'Memory' is no level (is memory meant?)", id="capitals"),
        pytest.param("crash,requird", "'requird' is no level (is required meant?)", id="misspelt"),
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
def test_no_mode(text: str, says: str) -> None:
    with pytest.raises(ModeInvalid) as caught:
        parse_mode(text)
    assert str(caught.value).startswith(f"{text!r}: ")
    assert says in str(caught.value)
    # `off` is for properties alone, and their reader names it.
    assert "or 'off'" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(NAMED_IN_ANY_ORDER, st.booleans())
def test_levels_are_read_as_written(named: list[ConsistencyLevel], required: bool) -> None:
    text = ",".join([*named, "required"] if required else named)
    assert parse_mode(text) == Mode(tuple(named), required)


@given(st.text())
def test_any_text_is_a_mode_or_refused(text: str) -> None:
    try:
        parsed = parse_mode(text)
    except ModeInvalid as error:
        assert repr(text) in str(error)
        return
    assert parsed.levels


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
    parsed = parse_mode(f"{text},required" if required else text)
    # A guest that is off has no more than its disks.
    assert {level for level in ConsistencyLevel if parsed.satisfied_by(level)} == {
        *good_enough,
        ConsistencyLevel.OFFLINE,
    }


def mode_set(*texts: str) -> ModeSet:
    return mode.mode_set(parse_mode(text) for text in texts)


@pytest.mark.parametrize(
    ("modes", "tried"),
    [
        pytest.param([], (), id="none"),
        pytest.param(["memory"], (MEMORY,), id="one"),
        pytest.param(["memory,quiesced,crash"], (MEMORY, QUIESCED, CRASH), id="one of several"),
        pytest.param(["quiesced,memory"], (QUIESCED, MEMORY), id="as written"),
        pytest.param(["quiesced", "memory"], (MEMORY, QUIESCED), id="the best first"),
        pytest.param(["paused,crash", "quiesced,crash"], (PAUSED, QUIESCED, CRASH), id="merged"),
        pytest.param(["memory,crash", "quiesced"], (MEMORY, QUIESCED, CRASH), id="crash ends it"),
        pytest.param(
            ["memory,quiesced", "paused"], (MEMORY, PAUSED, QUIESCED), id="the best of the rest"
        ),
        pytest.param(
            ["quiesced,memory", "quiesced"],
            (QUIESCED, MEMORY),
            id="the sequence within a mode stays",
        ),
        pytest.param(["crash", "memory"], (MEMORY, CRASH), id="crash and memory"),
        pytest.param(["paused,memory,crash"], (PAUSED, MEMORY, CRASH), id="paused before memory"),
        pytest.param(
            ["paused,memory", "quiesced,crash"],
            (PAUSED, MEMORY, QUIESCED, CRASH),
            id="paused before memory, merged",
        ),
        pytest.param(
            ["paused,memory", "memory"], (MEMORY, PAUSED), id="memory serves both, paused one"
        ),
    ],
)
def test_levels_of_a_set(modes: list[str], tried: tuple[ConsistencyLevel, ...]) -> None:
    assert mode_set(*modes).levels == tried


@given(st.lists(NAMED_IN_ANY_ORDER, max_size=4))
def test_each_level_is_tried_once(modes: list[list[ConsistencyLevel]]) -> None:
    tried = mode.mode_set(Mode(tuple(levels)) for levels in modes).levels
    assert sorted(tried) == sorted({level for levels in modes for level in levels})
    if modes:
        assert NAMED.index(tried[0]) == min(NAMED.index(levels[0]) for levels in modes)


@pytest.mark.parametrize(
    ("modes", "enough", "too_little"),
    [
        pytest.param([], set(ConsistencyLevel), set(), id="none"),
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
        pytest.param(
            ["paused,memory,required"], {MEMORY, PAUSED}, {QUIESCED, CRASH}, id="paused or memory"
        ),
    ],
)
def test_what_satisfies_a_set_and_what_it_forbids(
    modes: list[str], enough: set[ConsistencyLevel], too_little: set[ConsistencyLevel]
) -> None:
    built = mode_set(*modes)
    assert {level for level in ConsistencyLevel if built.satisfied_by(level)} == enough | {
        ConsistencyLevel.OFFLINE
    }
    assert {level for level in ConsistencyLevel if built.forbids(level)} == too_little
    assert (built.minimum is None) is not any("required" in text for text in modes)


def test_the_same_mode_of_several_types_is_one() -> None:
    assert mode_set("memory", "memory", "crash").modes == (Mode((MEMORY,)), Mode((CRASH,)))


@pytest.mark.parametrize(
    ("modes", "of_one_instant"),
    [
        pytest.param(["memory"], ["paused"], id="memory"),
        pytest.param(["memory,required"], ["paused,required"], id="required stays so"),
        pytest.param(["memory,paused,quiesced"], ["paused,quiesced"], id="paused but once"),
        pytest.param(["paused,memory,crash"], ["paused,crash"], id="paused before memory"),
        pytest.param(["quiesced,crash"], ["quiesced,crash"], id="without RAM"),
        pytest.param(["quiesced", "memory"], ["quiesced", "paused"], id="each mode"),
    ],
)
def test_together(modes: list[str], of_one_instant: list[str]) -> None:
    assert mode_set(*modes).with_paused_for_memory() == mode_set(*of_one_instant)


@pytest.mark.parametrize(
    ("level", "has_memory", "holds_guest"),
    [
        (MEMORY, True, False),
        (PAUSED, True, True),
        (QUIESCED, False, True),
        (CRASH, False, False),
        (ConsistencyLevel.OFFLINE, False, False),
    ],
)
def test_what_a_level_means(level: ConsistencyLevel, has_memory: bool, holds_guest: bool) -> None:
    assert (level.has_memory, level.holds_guest) == (has_memory, holds_guest)
