from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.fakes.report_facts import NOW, OFFSITE, example, host, point
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.report.attention import Finding, Severity, findings
from zvmsnap.report.facts import GuestFacts, PointFacts, Room, Sent, Verified

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ACT, LOOK = Severity.ACT, Severity.LOOK


def proven(age: timedelta, **changes: Any) -> PointFacts:
    """A point that was started an hour ago."""
    return point(age, **{"verified": Verified.STARTED, "verified_at": NOW - HOUR} | changes)


def hourly(newest: timedelta = HOUR / 2) -> list[PointFacts]:
    return [proven(newest + n * HOUR) for n in range(20, -1, -1)]


def of(points: Iterable[PointFacts], **changes: Any) -> list[Finding]:
    return findings(host([GuestFacts("web", tuple(points), **changes)]))


def test_nothing() -> None:
    assert of(hourly()) == []
    assert findings(host([])) == []


@pytest.mark.parametrize(("age", "is_late"), [(2.7 * HOUR, False), (2.8 * HOUR, True)])
def test_late_by_what_is_usual(age: timedelta, is_late: bool) -> None:
    found = of(hourly(age))
    assert bool(found) is is_late
    if is_late:
        assert (found[0].severity, found[0].guests) == (ACT, ("web",))
        assert found[0].what == "its newest point is 3 h old, and there usually is one every 1 h"


def test_of_few_points_only_a_week_is_late() -> None:
    assert of([proven(6 * DAY)]) == []
    assert "is 8 days old" in of([proven(8 * DAY)])[0].what


def test_a_guest_that_is_gone_is_not_late() -> None:
    assert of(hourly(9 * DAY), is_defined=False) == []
    assert of(hourly(9 * DAY), is_defined=None) != []


def test_the_newest_that_was_verified_counts() -> None:
    failed: dict[str, Any] = {"verified": Verified.FAILED, "verified_why": "no agent"}
    older, newer = hourly(), hourly()
    older[2] = replace(older[2], **failed)
    assert of(older) == []
    newer[-1] = replace(newer[-1], **failed)
    (found,) = of(newer)
    assert found.severity is ACT and found.what.endswith("the verification: no agent")


def test_a_send_that_failed() -> None:
    sent = Sent(OFFSITE, NOW - DAY, "no route to host")
    (found,) = of(hourly(), sent=(sent,))
    assert found.what == f"the last send to {OFFSITE} failed: no route to host"
    assert of(hourly(), sent=(replace(sent, error=""),)) == []


def test_a_level_that_was_not_reached() -> None:
    lowered = proven(
        HOUR / 4, level=ConsistencyLevel.CRASH, is_lowered=True, note="no room in staging"
    )
    (found,) = of([*hourly(), lowered])
    assert found.severity is LOOK
    assert found.what == "its newest point is only of level crash: no room in staging"
    (found,) = of([*hourly(), replace(lowered, is_lowered=False, note="TPM is missing")])
    assert found.what == "to know of its newest point: TPM is missing"


def test_not_started_for_long() -> None:
    old = [replace(each, verified_at=NOW - 31 * DAY) for each in hourly()]
    (found,) = of(old)
    assert (found.severity, found.guests) == (LOOK, ("web",))
    assert "30 days" in found.what


@pytest.mark.parametrize(
    ("free_gib", "severity"), [(40, ACT), (60, LOOK), (140, LOOK), (160, None)]
)
def test_room_in_the_vault(free_gib: int, severity: Severity | None) -> None:
    room = Room("/vault", 1000 << 30, free_gib << 30)
    found = findings(host([], vault=room))
    assert [each.severity for each in found] == ([severity] if severity else [])


def test_what_is_wrong_with_the_host_comes_first() -> None:
    guests = [GuestFacts("web", hourly()), GuestFacts("new"), GuestFacts("old", [proven(DAY)])]
    guests[2] = replace(guests[2], points=(proven(DAY, has_snapshots=False),))
    found = findings(
        host(
            guests,
            damaged=["/vault/x: no JSON"],
            interrupted=["web: run x is interrupted"],
            problems=["qemu.conf says sparse"],
            destinations=(OFFSITE,),
            silent=(OFFSITE,),
        )
    )
    said = [(each.severity, each.what, each.guests) for each in found]
    assert said == [
        (ACT, "A point cannot be read: /vault/x: no JSON", ()),
        (ACT, "web: run x is interrupted", ()),
        (ACT, "qemu.conf says sparse", ()),
        (LOOK, "no point", ("new",)),
        (LOOK, f"{OFFSITE} has had no new point for more than 7 days", ()),
        (LOOK, "never sent anywhere", ("web", "old")),
        (LOOK, "points without any snapshot", ("old",)),
    ]


def test_the_example_of_the_documents_has_some_of_each() -> None:
    severities = [each.severity for each in findings(example())]
    assert severities == sorted(severities)
    assert set(severities) == {ACT, LOOK}
