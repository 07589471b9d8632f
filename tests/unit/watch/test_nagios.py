import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.fixtures import UUID
from tests.unit.watch.conftest import HOUR_S, WEB
from zvmsnap.watch import nagios
from zvmsnap.watch.facts import Facts, PointFacts
from zvmsnap.watch.finding import Finding, Kind, Severity, worst
from zvmsnap.watch.thresholds import Thresholds

MakeFacts = Callable[..., Facts]
# By the guidelines of the Monitoring Plugins project.
ONE = r"(?:'[^'=|]+'|[^'= |]+)=-?[0-9.]+(?:s|B|%)?(?:;[0-9.:]*){0,4}"
LINE = re.compile(rf"ZVMSNAP (OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+ \| {ONE}(?: {ONE})*")
BAD = Finding(Severity.CRITICAL, Kind.POINT, "has no point", "web")
ODD = Finding(Severity.UNKNOWN, Kind.LIBVIRT, "libvirt: no answer")
SOME = Finding(Severity.WARNING, Kind.AGE, "is old", "db")


def test_all_is_well(facts: MakeFacts, limits: Thresholds) -> None:
    gib = 1 << 30
    assert nagios.line(facts(), [], limits) == (
        "ZVMSNAP OK - 1 of 1 guests have points, the oldest newest point is 60m old | "
        "guests=1;;;0 guests_with_points=1;;;0 warning=0;;;0 critical=0;;;0 unknown=0;;;0 "
        "age_max=3600s;93600;180000;0 "
        f"vault_free={500 * gib}B;{100 * gib}:;{50 * gib}:;0;{1000 * gib} "
        f"staging_free={100 * gib}B;{20 * gib}:;{10 * gib}:;0;{200 * gib}"
    )


def test_the_worst_comes_first(facts: MakeFacts, limits: Thresholds) -> None:
    line = nagios.line(facts(), [SOME, ODD, BAD], limits)
    assert line.startswith(
        "ZVMSNAP CRITICAL - web: has no point; libvirt: no answer; db: is old | "
    )
    assert " warning=1;;;0 critical=1;;;0 unknown=1;;;0 " in line


@pytest.mark.parametrize(
    ("found", "code"),
    [([], 0), ([SOME], 1), ([SOME, BAD], 2), ([SOME, ODD], 3), ([ODD, BAD], 2)],
)
def test_what_all_comes_to(found: list[Finding], code: int) -> None:
    assert worst(found) == code


def test_of_hundreds_some_are_told(facts: MakeFacts, limits: Thresholds) -> None:
    many = [Finding(Severity.CRITICAL, Kind.POINT, "x" * 500, f"g{n}") for n in range(300)]
    line = nagios.line(facts(), many, limits)
    assert "and 294 more: zvmsnap monitor --json | " in line
    assert len(line) < 1500


def test_a_guest_that_is_named_has_its_own_perfdata(
    facts: MakeFacts, newest: Callable[..., PointFacts], limits: Thresholds
) -> None:
    own = {"tank/web": {"zvmsnap:warn-age": "90m", "zvmsnap:crit-age": "off"}}
    known = facts(points={UUID: newest(2 * HOUR_S)}, properties=own)
    assert " web_age=7200s;5400;;0 " in nagios.line(known, [], limits, ["web"])


TEXTS = st.text(st.characters(), min_size=1)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXTS, text=TEXTS)
def test_whatever_guests_and_errors_say_it_is_one_line(
    facts: MakeFacts, limits: Thresholds, name: str, text: str
) -> None:
    known = facts(guests=(replace(WEB, name=name),))
    line = nagios.line(known, [Finding(Severity.WARNING, Kind.AGE, text, name)], limits, [name])
    assert LINE.fullmatch(line) and line.isprintable()
    assert nagios.failure(text).isprintable() and "|" not in nagios.failure(text)
