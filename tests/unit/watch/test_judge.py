from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.fakes.fixtures import UUID
from tests.fakes.guest import OTHER
from tests.unit.watch.conftest import HOUR_S, NOW_S, WEB, time_of
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Monitor
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.watch.facts import Facts, GuestFacts, PointFacts
from zvmsnap.watch.finding import Finding, Kind, Severity

Judged = Callable[..., list[str]]
MakeFacts = Callable[..., Facts]
Newest = Callable[..., PointFacts]
RUN = "autosnap_2026-11-20_03:00:00"
OLD = {"creation": "1700000000"}


def test_a_host_on_which_all_is_well(judged: Judged, facts: MakeFacts) -> None:
    assert judged(facts()) == []


NONE = "CRITICAL point web: has no point: its disks are on tank/web; is that in sanoid.conf?"


@pytest.mark.parametrize(
    ("guest", "own", "found"),
    [
        (WEB, OLD, [NONE]),
        # As old as a point may become, and no older.
        (WEB, {"creation": str(int(NOW_S - 26 * HOUR_S))}, []),
        (WEB, {"creation": str(int(NOW_S - 26 * HOUR_S - 1))}, [NONE]),
        (WEB, {**OLD, "zvmsnap:mode": "off"}, []),
        (WEB, {**OLD, "zvmsnap:mode": "off", "zvmsnap:mode:daily": "crash"}, [NONE]),
        (WEB, {**OLD, "zvmsnap:mode:daily": "off"}, [NONE]),
        (WEB, {**OLD, "zvmsnap:warn-age": "off", "zvmsnap:crit-age": "off"}, []),
        (replace(WEB, is_clone=True), OLD, []),
        # On no dataset; and where that is not known, which is told of the guest.
        (replace(WEB, datasets=frozenset()), OLD, []),
        (replace(WEB, datasets=None), OLD, []),
    ],
)
def test_guests_that_ought_to_have_points_and_have_none(
    judged: Judged, facts: MakeFacts, guest: GuestFacts, own: dict[str, str], found: list[str]
) -> None:
    known = facts(guests=(guest,), points={}, properties={"tank/web": own})
    assert judged(known) == found


def test_points_of_another_guest_of_that_name_do_not_count(
    judged: Judged, facts: MakeFacts
) -> None:
    assert judged(facts(guests=(replace(WEB, uuid=OTHER),))) == [NONE]


@pytest.mark.parametrize(
    ("age_s", "own", "found"),
    [
        (26 * HOUR_S, {}, []),
        (27 * HOUR_S, {}, [("WARNING", "is 27h old (more than 26h)")]),
        (51 * HOUR_S, {}, [("CRITICAL", "is 2d old (more than 2d)")]),
        (2 * HOUR_S, {"zvmsnap:warn-age": "90m"}, [("WARNING", "is 2h old (more than 90m)")]),
        (7 * HOUR_S, {"zvmsnap:crit-age": "6h"}, [("CRITICAL", "is 7h old (more than 6h)")]),
        (900 * HOUR_S, {"zvmsnap:warn-age": "off", "zvmsnap:crit-age": "off"}, []),
        (-600, {}, [("WARNING", "is of the future, by 10m: was a clock wrong?")]),
        (-10, {}, []),
    ],
)
def test_the_age_of_the_newest_point(
    judged: Judged,
    facts: MakeFacts,
    newest: Newest,
    age_s: float,
    own: dict[str, str],
    found: list[tuple[str, str]],
) -> None:
    known = facts(points={UUID: newest(age_s)}, properties={"tank/web": {**OLD, **own}})
    assert judged(known) == [
        f"{severity} age web: newest point web@{RUN} {text}" for severity, text in found
    ]


def test_an_age_that_is_none_is_told_and_the_default_counts(
    judged: Judged, facts: MakeFacts, newest: Newest
) -> None:
    wrong = {**OLD, "zvmsnap:warn-age": "soon"}
    found = judged(facts(points={UUID: newest(27 * HOUR_S)}, properties={"tank/web": wrong}))
    assert found[0].startswith("WARNING config web: tank/web: zvmsnap:warn-age='soon' is no age")
    assert found[1].startswith("WARNING age web: ") and len(found) == 2


LEVEL = ConsistencyLevel


@pytest.mark.parametrize(
    ("level", "types", "own", "changes", "wanted"),
    [
        (LEVEL.MEMORY, ["hourly"], {}, {}, ""),
        (LEVEL.CRASH, ["hourly"], {}, {}, "memory: no agent"),
        (LEVEL.CRASH, ["hourly"], {"zvmsnap:mode": "memory,crash"}, {}, ""),
        (LEVEL.CRASH, ["hourly"], {"zvmsnap:mode:hourly": "crash"}, {}, ""),
        (
            LEVEL.CRASH,
            ["hourly", "daily"],
            {"zvmsnap:mode:hourly": "crash"},
            {},
            "memory: no agent",
        ),
        (LEVEL.OFFLINE, ["hourly"], {}, {}, ""),
        (LEVEL.PAUSED, ["hourly"], {}, {}, "memory: no agent"),
        # `zvmsnap take` pauses where RAM is wanted.
        (LEVEL.PAUSED, ["manual"], {}, {}, ""),
        # Its RAM was there, and was kept for its time.
        (LEVEL.CRASH, ["hourly"], {}, {"absent_memory": "00"}, ""),
    ],
)
def test_the_level_that_was_reached_against_what_is_demanded(
    judged: Judged,
    facts: MakeFacts,
    newest: Newest,
    level: ConsistencyLevel,
    types: list[str],
    own: dict[str, str],
    changes: dict[str, Any],
    wanted: str,
) -> None:
    names = ["by-hand" if each == "manual" else f"{RUN}_{each}" for each in types]
    refs = tuple(SnapshotRef("tank/web", name, n, n) for n, name in enumerate(names, 1))
    points = newest(level=level, reason="no agent", snapshots=refs, **changes)
    known = facts(points={UUID: points}, properties={"tank/web": {**OLD, **own}})
    text = f"WARNING level web: newest point is of level {level}, not {wanted}"
    assert judged(known) == ([text] if wanted else [])


def test_a_mode_that_is_none_is_told(judged: Judged, facts: MakeFacts) -> None:
    (found,) = judged(facts(properties={"tank/web": {**OLD, "zvmsnap:mode": "memroy"}}))
    assert found.startswith("WARNING config web: 'memroy': ")


def test_a_newest_point_that_cannot_be_read(
    judged: Judged, facts: MakeFacts, newest: Newest
) -> None:
    damaged = "/vault/web/x/manifest.json: schema 9 is not one this version reads"
    second = replace(newest(), damaged=damaged)
    assert judged(facts(points={UUID: second})) == [f"WARNING damaged web: {damaged}"]
    # None of its points can be read: they are found by its name.
    alone = PointFacts("web", 1, damaged=damaged)
    assert judged(facts(points={"web": alone})) == [f"CRITICAL damaged web: {damaged}"]


def result(age_s: float, why: str = "") -> VerifyResult:
    return VerifyResult(checked=time_of(age_s), why=why)


@pytest.mark.parametrize(
    ("checked", "warn", "found"),
    [
        (None, "off", []),
        (None, "7d", ["WARNING verify web: no point was ever verified"]),
        (result(6 * 24 * HOUR_S), "7d", []),
        (result(8 * 24 * HOUR_S), "7d", ["WARNING verify web: last verified 8d ago (web@x)"]),
        (result(8 * 24 * HOUR_S), "off", []),
        (
            result(HOUR_S, "no sign of life"),
            "off",
            ["CRITICAL verify web: web@x did not pass zvmsnap verify: no sign of life"],
        ),
    ],
)
def test_verifications(
    judged: Judged,
    facts: MakeFacts,
    newest: Newest,
    config: Config,
    checked: VerifyResult | None,
    warn: str,
    found: list[str],
) -> None:
    points = replace(newest(), verified=checked, verified_name="web@x")
    asked = msgspec.structs.replace(config, monitor=Monitor(warn_verify=warn))
    assert judged(facts(points={UUID: points}), asked) == found


@pytest.mark.parametrize("lacking", ["guests", "points", "properties"])
def test_who_does_not_answer_is_no_guest_without_points(
    judged: Judged, facts: MakeFacts, lacking: str
) -> None:
    told = Finding(Severity.UNKNOWN, Kind.LIBVIRT, "libvirt: no answer within 20 s")
    assert judged(facts(**{"points": {}, "unknown": (told,), lacking: None})) == [
        f"UNKNOWN libvirt {told}"
    ]


def test_only_the_guests_that_are_named(judged: Judged, facts: MakeFacts, config: Config) -> None:
    guests = (WEB, GuestFacts("db", OTHER, frozenset({"tank/db"})))
    known = facts(guests=guests, points={})
    assert judged(known, config, "web") == [NONE]
    assert judged(known, config, "mail", "db") == [
        "CRITICAL point db: has no point: its disks are on tank/db; is that in sanoid.conf?",
        "UNKNOWN libvirt mail: there is no such guest",
    ]
