import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.watch.exposition import COUNTER, Family, text

LABELS = re.compile(r'(\w+)="((?:[^"\\\n]|\\[\\"n])*)",?')
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def read(label: str) -> str:
    """A value as Prometheus reads it."""
    return re.sub(r'\\[\\"n]', lambda found: UNESCAPED[found[0]], label)


def test_a_family() -> None:
    family = Family("zvmsnap_failures_total", "So\nmany \\.", COUNTER)
    family.add(1, cause="a")
    family.add(2.5, cause='b"\\')
    family.add(3, cause="a")
    assert text([family, Family("zvmsnap_empty", "Nothing.")]) == (
        b"# HELP zvmsnap_failures_total So\\nmany \\\\.\n"
        b"# TYPE zvmsnap_failures_total counter\n"
        b'zvmsnap_failures_total{cause="a"} 3\n'
        b'zvmsnap_failures_total{cause="b\\"\\\\"} 2.5\n'
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, "1"), (0.0, "0"), (1 << 40, "1099511627776"), (0.125, "0.125"), (1e300, "1e+300")],
)
def test_numbers(value: float, said: str) -> None:
    family = Family("zvmsnap_x", "X.")
    family.add(value)
    assert text([family]).decode().splitlines()[-1] == f"zvmsnap_x {said}"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_label_may_say_anything(value: str) -> None:
    family = Family("zvmsnap_x", "X.")
    family.add(1, guest=value, kind="y")
    line = text([family]).decode().removesuffix("\n").split("\n")[-1]
    labels = LABELS.findall(line.removeprefix("zvmsnap_x{").removesuffix("} 1"))
    assert [(name, read(label)) for name, label in labels] == [("guest", value), ("kind", "y")]


def test_what_is_no_unicode_stays_a_file() -> None:
    family = Family("zvmsnap_x", "X.")
    family.add(1, guest="\udcff")
    assert text([family]).endswith(b'zvmsnap_x{guest="?"} 1\n')
