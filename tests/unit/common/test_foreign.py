import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZfsFailed

ANY_CHARACTER = st.characters()  # surrogates, too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web, 14 °C, 日本, café", "web, 14 °C, 日本, café"),
        ("\x1b[2J\x07\x7f", r"\x1b[2J\x07\x7f"),
        ("a\nb\rc\td\x0be\x85f\u2028g", r"a\nb\rc\td\x0be\x85f\u2028g"),
        ("\x9b2J", r"\x9b2J"),  # ESC [ in one character
        ("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f"),
        ("\U000e0041", r"\U000e0041"),
        ("caf\udce9", r"caf\xe9"),  # a byte that is no UTF-8
        ("\ud800", r"\ud800"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert foreign.printable(text) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b" cannot  open\n\n\t'x':\r\n no \xe9\x1b[m \n", r"cannot open 'x': no \xe9\x1b[m"),
        ("two\u2028lines", "two lines"),
        (b"", ""),
    ],
)
def test_line(said: bytes | str, shown: str) -> None:
    assert foreign.line(said) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"usage:\n zfs ...\r\ncannot \x1b[1mdo it\r\n\n \n", r"cannot \x1b[1mdo it"),
        (b"x" * (1 << 20) + b"\nno\x85 space", r"no\x85 space"),
        (b" \n", ""),
        (b"", ""),
    ],
)
def test_last_line(said: bytes, shown: str) -> None:
    assert foreign.last_line(said) == shown


def test_megabytes_become_short() -> None:
    assert foreign.line("x" * (32 << 20), 5) == "xxxx…"
    assert len(foreign.line(b"\x1b" * (32 << 20))) == foreign.LINE_MAX
    assert len(foreign.printable("\x1b" * 100_000)) == foreign.PRINTED_MAX
    assert foreign.printable("x" * 5, 5) == "xxxxx"


@given(st.text(ANY_CHARACTER) | st.binary(), st.integers(2, 50))
def test_whatever_is_said_is_one_short_line_that_may_be_printed(
    said: str | bytes, at_most: int
) -> None:
    shown = foreign.line(said, at_most)
    assert shown.isprintable() and len(shown) <= at_most
    shown.encode()  # no surrogates


@given(st.text(ANY_CHARACTER))
def test_an_error_is_one_line_whatever_it_quotes(text: str) -> None:
    assert str(ZfsFailed(f"tank: {text}")).isprintable()
