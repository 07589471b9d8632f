import hypothesis
import hypothesis.strategies as st
import pytest

from zvmsnap.common.errors import SanoidConfInvalid
from zvmsnap.config import sanoid_conf
from zvmsnap.setup import text

CONF = """\
# mine
[tank/vm]
  hourly = 3   

  # of the hooks
# of the next
[template_p]
daily = 1"""  # noqa: W291 - an administrator's blanks stay


def test_keys_stand_behind_the_last_one_of_their_section() -> None:
    assert text.with_keys(CONF, "tank/vm", {"a": "1", "b": "2"}) == CONF.replace(
        "  hourly = 3   \n", "  hourly = 3   \n  a = 1\n  b = 2\n"
    )
    assert text.with_keys(CONF, "template_p", {"a": "1"}) == f"{CONF}\na = 1"


def test_keys_of_an_empty_section() -> None:
    assert text.with_keys("[a]\n\n[b]\nx = 1\n", "a", {"y": "2"}) == "[a]\n\ty = 2\n\n[b]\nx = 1\n"


def test_line_ends_stay() -> None:
    crlf = "[a]\r\nx = 1\r\n"
    assert text.with_keys(crlf, "a", {"y": "2"}) == "[a]\r\nx = 1\r\ny = 2\r\n"
    assert text.with_sections(crlf, ["[b]\nz = 3\n"]) == "[a]\r\nx = 1\r\n\r\n[b]\r\nz = 3\r\n"


def test_sections_stand_at_the_end() -> None:
    assert text.with_sections(CONF, ["[a]\nx = 1\n"]) == f"{CONF}\n\n[a]\nx = 1\n"
    assert text.with_sections("", ["[a]\nx = 1\n"]) == "[a]\nx = 1\n"


def test_top_level_lines_stand_above_the_first_table() -> None:
    toml = 'vault = "/a"\n\n# limits\n[limits]\npause_max_ms = 3\n'
    assert text.with_top_level(toml, ["x = 1"]) == (
        'vault = "/a"\n\nx = 1\n\n# limits\n[limits]\npause_max_ms = 3\n'
    )
    assert text.with_top_level('vault = "/a"', ["x = 1"]) == 'vault = "/a"\nx = 1\n'
    assert text.with_top_level("[limits]\n", ["x = 1"]) == "x = 1\n\n[limits]\n"


LINES = st.sampled_from(
    ["[a]", "[ b ]", "x = 1", "  y = 2  ", "# [a]", "", "; z", "x =", "[template_p]", "\tq = é"]
)


@hypothesis.given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_no_line_is_lost(lines: list[str], ending: str, ends: bool) -> None:
    before = ending.join(lines) + ending * ends
    try:
        sections = sanoid_conf.parse(before).sections
    except SanoidConfInvalid:
        return
    for title in sections:
        after = text.with_keys(before, title, {"new": "1"})
        old, new = before.splitlines(), after.splitlines()
        (place,) = [number for number, line in enumerate(new) if line.split() == ["new", "=", "1"]]
        assert new[:place] + new[place + 1 :] == old
        grown = sanoid_conf.parse(after).sections
        assert grown.pop(title) == sections[title] | {"new": ["1"]}
        assert grown == {name: keys for name, keys in sections.items() if name != title}
    after = text.with_sections(before, ["[added]\nx = 1\n"])
    assert after.startswith(before)
    assert sanoid_conf.parse(after).sections == sections | {"added": {"x": ["1"]}}


def test_a_title_that_is_not_there() -> None:
    with pytest.raises(StopIteration):
        text.with_keys("[a]\n", "b", {"x": "1"})
