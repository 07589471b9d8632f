from datetime import timedelta
from typing import Any

from tests.fakes.report_facts import NOW, example, host, point
from zvmsnap.report.attention import Finding, Severity, findings
from zvmsnap.report.facts import GuestFacts, PointFacts, Verified
from zvmsnap.watch import finding as watched
from zvmsnap.watch.finding import Kind

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ACT, UNKNOWN, LOOK = Severity.ACT, Severity.UNKNOWN, Severity.LOOK


def proven(**changes: Any) -> PointFacts:
    """A point that was started an hour ago."""
    return point(DAY, **{"verified": Verified.STARTED, "verified_at": NOW - HOUR} | changes)


def of(*points: PointFacts) -> list[Finding]:
    return findings(host([GuestFacts("web", points)]))


def seen(severity: watched.Severity, kind: Kind, text: str, guest: str = "") -> watched.Finding:
    return watched.Finding(severity, kind, text, guest)


def test_nothing() -> None:
    assert of(proven()) == []
    assert findings(host([])) == []


def test_what_monitor_finds_the_worst_first() -> None:
    found = [
        seen(watched.Severity.WARNING, Kind.LEVEL, "is crash", "web"),
        seen(watched.Severity.UNKNOWN, Kind.LIBVIRT, "no answer"),
        seen(watched.Severity.CRITICAL, Kind.ROOM, "vault is full"),
    ]
    assert findings(host([], found=found)) == [
        Finding(
            ACT,
            "vault is full",
            (),
            "keep RAM for a shorter time: zfs set zvmsnap:keep-memory=24 DATASET",
        ),
        Finding(UNKNOWN, "no answer"),
        Finding(LOOK, "is crash", ("web",)),
    ]


def test_what_is_the_same_of_several_guests_is_told_once() -> None:
    never = "no point was ever verified"
    found = [seen(watched.Severity.WARNING, Kind.VERIFY, never, name) for name in ("a", "b", "c")]
    found.append(seen(watched.Severity.CRITICAL, Kind.VERIFY, never, "d"))
    assert [(each.severity, each.guests) for each in findings(host([], found=found))] == [
        (ACT, ("d",)),
        (LOOK, ("a", "b", "c")),
    ]


def test_points_that_cannot_be_read_are_told_once() -> None:
    found = [seen(watched.Severity.CRITICAL, Kind.DAMAGED, "/v/b: no JSON", "web")]
    assert [
        each.what for each in findings(host([], found=found, damaged=["/v/a: x", "/v/b: no JSON"]))
    ] == [
        "/v/b: no JSON",
        "a point cannot be read: /v/a: x",
    ]


def test_what_is_wrong_with_the_host() -> None:
    assert findings(host([], problems=["qemu.conf says sparse"])) == [
        Finding(ACT, "qemu.conf says sparse")
    ]


def test_what_to_know_of_the_newest_point() -> None:
    """Not why its level is no better one: whether it should be, `monitor` knows."""
    assert of(proven(note="no agent")) == []
    (found,) = of(proven(warning="gone"), proven(note="no TPM", warning="no TPM"))
    assert found.what == "to know before relying on its newest point: no TPM"


def test_not_started_for_long() -> None:
    (found,) = of(proven(verified_at=NOW - 31 * DAY), proven(verified=Verified.READ))
    assert (found.severity, found.guests) == (LOOK, ("web",))
    assert "30 days" in found.what
    assert findings(host([GuestFacts("new")])) == []


def test_points_without_snapshots() -> None:
    (found,) = of(proven(has_snapshots=False), proven())
    assert (found.what, found.guests) == ("points without any snapshot", ("web",))


def test_the_example_of_the_documents_has_some_of_each() -> None:
    severities = [each.severity for each in findings(example())]
    assert severities == sorted(severities)
    assert set(severities) == {ACT, LOOK}
