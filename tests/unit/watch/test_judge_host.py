from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.fixtures import UUID
from tests.unit.watch.conftest import HOUR_S, NOW_S, ROOMS, WEB, time_of
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, DestinationTable
from zvmsnap.journal.entry import Entry
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.watch.facts import Facts, Room, Work

Judged = Callable[..., list[str]]
MakeFacts = Callable[..., Facts]
MakeEntry = Callable[..., Entry]
RUN = "run autosnap_2026-11-20_03:00:00"
NEXT = "zvmsnap recover ends it"


def work(entry: Entry, idle_s: float = 0.0) -> Work:
    return Work(entries=(entry,), idle_s={entry.capture: idle_s})


@pytest.mark.parametrize(
    ("minutes", "severity"), [(14, ""), (16, "WARNING"), (119, "WARNING"), (121, "CRITICAL")]
)
def test_an_overlay_that_is_open_for_too_long(
    judged: Judged, facts: MakeFacts, entry: MakeEntry, minutes: int, severity: str
) -> None:
    frozen_s = NOW_S - minutes * 60
    own = entry(step="frozen", disks_frozen_at_s=frozen_s, owner=Process.none())
    said = "2h" if minutes >= 120 else f"{minutes}m"
    text = f"overlay web: {RUN} is on overlays for {said}, interrupted at step frozen (on overlays)"
    assert judged(facts(work=work(own))) == ([f"{severity} {text}: {NEXT}"] if severity else [])


@pytest.mark.parametrize(("minutes", "severity"), [(1, "WARNING"), (121, "CRITICAL")])
def test_a_merge_that_somebody_blocks(
    judged: Judged, facts: MakeFacts, entry: MakeEntry, minutes: int, severity: str
) -> None:
    own = entry(step="commit", disks_frozen_at_s=NOW_S - minutes * 60, in_the_way="a job on vda")
    (found,) = judged(facts(work=work(own)))
    assert found.startswith(f"{severity} merge web: stays on its overlays, for ")
    assert "because of a job on vda" in found


def test_a_run_that_nobody_goes_on_with(judged: Judged, facts: MakeFacts, entry: MakeEntry) -> None:
    own = entry(step="store", disks_frozen_at_s=NOW_S - 60, owner=Process.none())
    assert judged(facts(work=work(own, 299))) == []
    assert judged(facts(work=work(own, 301))) == [
        f"WARNING interrupted web: {RUN} is interrupted at step store (publishing): {NEXT}"
    ]


def test_a_guest_that_stands_still_beyond_its_deadline(
    judged: Judged, facts: MakeFacts, entry: MakeEntry
) -> None:
    def held(for_s: float) -> list[str]:
        own = entry(
            level=ConsistencyLevel.PAUSED,
            paused=True,
            held_since_s=uptime_s() - for_s,
            disks_frozen_at_s=NOW_S,
            step="frozen",
        )
        return judged(facts(work=work(own)))

    assert held(80) == []
    assert held(300) == ["CRITICAL overlay web: has been paused or frozen for 5m: zvmsnap recover"]


def test_an_overlay_that_no_journal_entry_names(
    judged: Judged, facts: MakeFacts, entry: MakeEntry
) -> None:
    guest = replace(WEB, overlays=("/staging/x/vda.zvmsnap.qcow2",))
    (found,) = judged(facts(guests=(guest,)))
    assert found.startswith("CRITICAL overlay web: is on /staging/x/vda.zvmsnap.qcow2, which no ")
    known = entry(step="frozen", disks_frozen_at_s=NOW_S)
    assert judged(facts(guests=(guest,), work=work(known))) == []


def test_what_waits_for_a_person(judged: Judged, facts: MakeFacts) -> None:
    known = Work(waiting={"web": 2}, interrupted=(("db", "restore of db@x was interrupted"),))
    assert judged(facts(work=known)) == [
        "WARNING waiting web: 2 points wait in staging for the vault: zvmsnap recover tries them",
        "WARNING interrupted db: restore of db@x was interrupted",
    ]


def status(age_s: float = HOUR_S, **changes: Any) -> SendStatus:
    known = {"destination": "nas:p", "domain": "web", "uuid": UUID, "last_attempt": time_of(0)}
    return SendStatus(**{**known, "newest_created": time_of(age_s), **changes})


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (status(), []),
        (status(9 * 24 * HOUR_S), ["its newest point at nas:p is 9d old"]),
        (status(error="no route"), ["the last send to nas:p failed: no route"]),
        (status(newest_created=""), []),
    ],
)
def test_sends(judged: Judged, facts: MakeFacts, sent: SendStatus, found: list[str]) -> None:
    assert judged(facts(sent=(sent,))) == [f"WARNING offsite web: {text}" for text in found]


@pytest.mark.parametrize(
    ("guests", "sent", "is_told"),
    [((), (), True), (("web",), (), True), (("db",), (), False), ((), (status(),), False)],
)
def test_a_guest_that_was_never_sent_where_it_should_be(
    judged: Judged,
    facts: MakeFacts,
    config: Config,
    guests: tuple[str, ...],
    sent: tuple[SendStatus, ...],
    is_told: bool,
) -> None:
    table = DestinationTable("nas:p", guests)
    asked = msgspec.structs.replace(config, destination=(table,))
    told = ["WARNING offsite web: was never sent to nas:p"]
    assert judged(facts(sent=sent), asked) == (told if is_told else [])


@pytest.mark.parametrize(("percent", "severity"), [(10, ""), (9, "WARNING"), (4, "CRITICAL")])
@pytest.mark.parametrize("name", ["vault", "staging"])
def test_room(judged: Judged, facts: MakeFacts, name: str, percent: int, severity: str) -> None:
    room = Room(Path("/x"), percent << 30, 100 << 30)
    found = judged(facts(rooms={**ROOMS, name: room}))
    text = f"{severity} room {name} /x has {size_of(percent)} free of 100G ({percent} %)"
    assert found == ([text] if severity else [])


def size_of(gib: int) -> str:
    return f"{gib}G" if gib >= 10 else f"{gib}.0G"


def test_staging_must_have_room_for_the_largest_ram(judged: Judged, facts: MakeFacts) -> None:
    large = replace(WEB, memory_bytes=80 << 30)
    assert judged(facts(guests=(large,))) == [
        "WARNING room staging /staging has 100G free, and the RAM and overlay of web may need "
        "121G: its points will have no RAM"
    ]
