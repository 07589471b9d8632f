"""Facts of a host on which all is well: one guest, with a fresh point of its only dataset."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fixtures import UUID
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.points.manifest import Manifest, PauseParts, Timing
from zvmsnap.points.memory_image import RamUsage
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.watch import exposition, judge, metrics
from zvmsnap.watch.facts import Facts, GuestFacts, PointFacts, Room, Work
from zvmsnap.watch.thresholds import Thresholds, thresholds

HOUR_S = 3600.0
NOW_S = 1_800_000_000.0
WEB = GuestFacts("web", UUID, frozenset({"tank/web"}), memory_bytes=1 << 30)
ROOMS = {
    "vault": Room(Path("/vault"), 500 << 30, 1000 << 30),
    "staging": Room(Path("/staging"), 100 << 30, 200 << 30),
}


def time_of(age_s: float) -> str:
    """The time, so long before NOW_S, as manifests have it."""
    return datetime.fromtimestamp(NOW_S - age_s, UTC).isoformat(timespec="milliseconds")


@pytest.fixture
def newest(manifest: Callable[..., Manifest]) -> Callable[..., PointFacts]:
    """The points of `web`, the newest of that age, with a manifest that is changed so."""

    def build(age_s: float = HOUR_S, **changes: Any) -> PointFacts:
        own = manifest(created=time_of(age_s), **changes)
        return PointFacts("web", 3, own, Path("/vault/web") / own.run)

    return build


@pytest.fixture
def facts(newest: Callable[..., PointFacts]) -> Callable[..., Facts]:
    """These facts, some of them changed."""

    def build(**changes: Any) -> Facts:
        known: dict[str, Any] = {
            "now_s": NOW_S,
            "guests": (WEB,),
            "points": {UUID: newest()},
            "properties": {"tank/web": {"creation": "1700000000"}},
            "rooms": ROOMS,
        }
        return Facts(**{**known, **changes})

    return build


@pytest.fixture
def limits(config: Config) -> Thresholds:
    """Those of a configuration without any."""
    return thresholds(config)


@pytest.fixture
def judged(config: Config, limits: Thresholds) -> Callable[..., list[str]]:
    """What is wrong, as `severity kind guest: text`."""

    def build(known: Facts, changed: Config = config, *only: str) -> list[str]:
        own = thresholds(changed)
        return [
            f"{each.severity.name} {each.kind} {each}"
            for each in judge.findings(changed, known, own, only)
        ]

    return build


TIMING = Timing(1.5, 20.0, 30.0, 4.0, 0.5, PauseParts(ram_s=0.5, overlays_s=0.75))


@pytest.fixture
def written(
    config: Config,
    facts: Callable[..., Facts],
    newest: Callable[..., PointFacts],
    entry: Callable[..., Entry],
    limits: Thresholds,
) -> bytes:
    """The file of a host that has something of everything."""
    points = replace(
        newest(timing=TIMING), verified=VerifyResult(checked=time_of(60)), verified_name="web@x"
    )
    sent = SendStatus(
        destination="nas:p",
        domain="web",
        uuid=UUID,
        last_attempt=time_of(60),
        newest_created=time_of(120),
        error="no route",
        seconds=7.0,
    )
    own = entry(step="commit", disks_frozen_at_s=NOW_S - 90, in_the_way="a job on vda")
    known = facts(
        points={UUID: points},
        sent=(sent,),
        work=Work(entries=(own,), waiting={"web": 2}),
    )
    found = judge.findings(config, known, limits)
    usages = {UUID: RamUsage(300, 100, 200)}
    families = metrics.families(known, found, limits, usages, {"NoSpace": 3})
    return exposition.text(families)
