"""A host as it could be, for the report: guests with points as sanoid keeps them, and troubles."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from zvmsnap.clone.screenshot import png_of
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.report.facts import GuestFacts, HostFacts, PointFacts, Screen, Sent, Verified
from zvmsnap.watch.facts import Room
from zvmsnap.watch.finding import Finding, Kind, Severity

NOW = datetime(2026, 11, 26, 9, 20, tzinfo=UTC)
OFFSITE = "backup@nas:pool/offsite"
_GIB = 1 << 30


def ages(hourly: int = 36, daily: int = 30, monthly: int = 6) -> list[timedelta]:
    """How old the points are that sanoid keeps, the oldest first."""
    kept = {timedelta(hours=n, minutes=20) for n in range(hourly)}
    kept |= {timedelta(days=n, hours=9, minutes=20) for n in range(daily)}
    kept |= {timedelta(days=25 + 30.4 * n, hours=9, minutes=20) for n in range(monthly)}
    return sorted(kept, reverse=True)


def point(age: timedelta, **changes: Any) -> PointFacts:
    """A point of that age."""
    created = NOW - age
    run = created.strftime("autosnap_%Y-%m-%d_%H:%M:%S")
    known: dict[str, Any] = {"run": run, "created": created, "level": ConsistencyLevel.MEMORY}
    return PointFacts(**known | changes)


def points(
    kept: Sequence[timedelta],
    *,
    level: ConsistencyLevel = ConsistencyLevel.MEMORY,
    ram_gib: float = 4,
    seed: int = 1,
    pause_s: float = 0.3,
    started: bool = True,
    sent: bool = True,
) -> Iterator[PointFacts]:
    """Points of these ages: RAM for 14 days, one started every night, sent every night."""
    chance = random.Random(seed)
    for age in kept:
        has_memory = level.has_memory and age < timedelta(days=14)
        at_night = (NOW - age).hour == 0
        verified = Verified.NEVER
        if at_night and age < timedelta(days=30):
            verified = Verified.STARTED if started and has_memory else Verified.READ
        yield point(
            age,
            level=level if has_memory or not level.has_memory else ConsistencyLevel.CRASH,
            lost_memory=level.has_memory and not has_memory,
            pause_s=pause_s * chance.lognormvariate(0, 0.45) if level.has_memory else 0.0,
            memory_bytes=int(ram_gib * _GIB * chance.uniform(0.55, 0.95)) if has_memory else 0,
            verified=verified,
            verified_at=None if verified is Verified.NEVER else NOW - timedelta(hours=6),
            destinations=(OFFSITE,) if sent and at_night else (),
        )


def console(lines: int, seed: int = 1, width: int = 360, height: int = 200) -> bytes:
    """A PNG that looks like a text console from afar."""
    chance = random.Random(seed)
    pixels = bytearray(b"\x10\x12\x18" * width * height)

    def fill(left: int, top: int, length: int, color: bytes) -> None:
        for y in range(top, min(top + 4, height)):
            at = 3 * (y * width + left)
            pixels[at : at + 3 * length] = color * length

    for row in range(lines):
        left, top = 6, 6 + row * 8
        if row < lines - 1:
            fill(left, top, 20, b"\x4f\xb0\x6a")
            left += 26
        for _ in range(chance.randint(2, 7)):
            length = chance.randint(8, 40)
            if left + length > width - 6:
                break
            fill(left, top, length, b"\xb8\xbe\xc8")
            left += length + 5
    return png_of(b"P6 %d %d 255\n" % (width, height) + bytes(pixels))


def host(guests: Sequence[GuestFacts], **changes: Any) -> HostFacts:
    """A host with these guests."""
    known: dict[str, Any] = {"name": "hv1.example.org", "version": "0.2", "now": NOW}
    return HostFacts(**known | {"guests": tuple(guests)} | changes)


def example() -> HostFacts:
    """A host with some troubles, as the documents show it."""
    memory, paused, quiesced, crash = list(ConsistencyLevel)[:4]
    guests = []
    for number, (name, level, ram_gib, pause_s) in enumerate(
        (
            ("build", crash, 0, 0),
            ("db", quiesced, 0, 0),
            ("files", memory, 8, 0.35),
            ("mail", memory, 6, 0.28),
            ("monitoring", paused, 4, 0.9),
            ("proxy", memory, 1, 0.12),
            ("shop", memory, 16, 0.55),
            ("web", memory, 4, 0.22),
            ("windows", memory, 12, 0.7),
        ),
        1,
    ):
        own = list(
            points(
                ages(),
                level=level,
                ram_gib=ram_gib,
                seed=number,
                pause_s=pause_s,
                started=name != "proxy",
                sent=name != "build",
            )
        )
        guests.append(_troubled(name, own, number))
    return host(
        guests,
        vault=Room(Path("/var/lib/zvmsnap/vault"), 350 << 30, 4 << 40),
        found=(
            Finding(
                Severity.WARNING,
                Kind.ROOM,
                "vault /var/lib/zvmsnap/vault has 350G free of 4.0T (9 %)",
            ),
            Finding(
                Severity.CRITICAL,
                Kind.AGE,
                "newest point mail@autosnap_2026-11-26_01:00:00 is 8h old (more than 6h)",
                "mail",
            ),
            Finding(
                Severity.CRITICAL,
                Kind.VERIFY,
                "windows@autosnap_2026-11-26_00:00:00 did not pass zvmsnap verify: its clone was "
                "started, but did nothing for 60 s: no agent, no CPU time, no change on its screen",
                "windows",
            ),
            Finding(
                Severity.WARNING,
                Kind.OFFSITE,
                f"the last send to {OFFSITE} failed: ssh: connect to host nas: timed out",
                "shop",
            ),
            Finding(
                Severity.WARNING,
                Kind.LEVEL,
                "newest point is of level crash, not memory: its RAM changed faster than it could "
                "be written",
                "files",
            ),
            Finding(Severity.WARNING, Kind.OFFSITE, f"was never sent to {OFFSITE}", "build"),
        ),
        destinations=(OFFSITE,),
    )


def _troubled(name: str, own: list[PointFacts], number: int) -> GuestFacts:
    sent = Sent(OFFSITE, NOW - timedelta(hours=9), "")
    if name == "mail":
        own = [each for each in own if NOW - each.created > timedelta(hours=8)]
    if name == "shop":
        sent = Sent(OFFSITE, NOW - timedelta(days=3), "ssh: connection timed out")
        own = [
            replace(
                each,
                destinations=() if NOW - each.created < timedelta(days=3) else each.destinations,
            )
            for each in own
        ]
    if name == "windows":
        why = "its clone was started, but did nothing for 60 s: no agent, no CPU time"
        last = max(n for n, each in enumerate(own) if each.verified is Verified.STARTED)
        own[last] = replace(own[last], verified=Verified.FAILED, verified_why=why)
    if name == "files":
        why = "its RAM changed faster than it could be written"
        own[-1] = replace(own[-1], level=ConsistencyLevel.CRASH, note=why, memory_bytes=0)
        own[-5] = replace(own[-5], pause_s=2.4)
    started = [each for each in own if each.verified is Verified.STARTED][::-1]
    screens = [
        Screen(each.run, "started after 3.8 s: its agent answers", console(4 + 5 * n, number + n))
        for n, each in enumerate(started[:2])
    ]
    return GuestFacts(name, own, (sent,) if name != "build" else (), screens, is_defined=True)
