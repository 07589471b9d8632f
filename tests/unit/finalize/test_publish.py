"""What is decided of a run, by its entry, its snapshots and the files; nothing is changed by it."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from zvmsnap.common.errors import LevelMissed, SnapshotMissing, VaultMissing
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.decision import CaptureFiles, NewPoint, NoPoint, decide
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef

Stage = Callable[..., Entry]
MEMORY, PAUSED, QUIESCED, CRASH, OFFLINE = ConsistencyLevel
OWN = SnapshotRef("tank/web", "a_hourly", 11, 5)
LATE = SnapshotRef("tank/web", "b_hourly", 12, 6)


def decided(
    config: Config, staged: Stage, *existing: SnapshotRef, **changes: Any
) -> NoPoint | NewPoint:
    return decided_of(config, staged(**changes), *existing)


def decided_of(config: Config, entry: Entry, *existing: SnapshotRef) -> NoPoint | NewPoint:
    decision = decide(entry, existing, CaptureFiles(config, entry))
    assert Journal(config.journal_dir).entries() == [entry]
    return decision


def test_a_recovery_has_no_point(config: Config, staged: Stage) -> None:
    decision = decided(config, staged, run="", snapshot_names=())
    assert decision == NoPoint("a recovery has no point")
    assert not config.vault_dir.exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({}, "none of .*_hourly was taken after pre: the RAM image", id="announced"),
        pytest.param({"newest_txg_before": {}}, "no snapshot was taken since pre", id="unnamed"),
    ],
)
def test_without_a_snapshot(
    config: Config, staged: Stage, changes: dict[str, Any], why: str
) -> None:
    decision = decided(config, staged, **changes)
    assert isinstance(decision, NoPoint) and decision.error is SnapshotMissing
    with pytest.raises(SnapshotMissing, match=why):
        raise decision.error(decision.why)
    # An unmounted vault keeps no entry open that has no point.
    assert not config.vault_dir.exists()


def test_not_all_of_its_disks_are_in_the_snapshot(config: Config, staged: Stage) -> None:
    entry = staged()
    (disk,) = entry.disks
    below = msgspec.structs.replace(disk, target="vdb", dataset="tank/web/data")
    entry = msgspec.structs.replace(entry, disks=(disk, below))
    Journal(config.journal_dir).write(entry)
    of_below = [SnapshotRef("tank/web/data", f"{each}_hourly", 13, 5) for each in "ab"]
    for existing, but in (
        ((OWN,), "nothing of tank/web/data"),
        ((OWN, of_below[1]), "no name that all datasets have"),
    ):
        decision = decided_of(config, entry, *existing)
        assert isinstance(decision, NoPoint) and decision.error is SnapshotMissing
        assert decision.why.startswith("no point, as not all disks are in one snapshot: there is ")
        assert decision.why.endswith(f"tank/web@a_hourly, but {but}")
    decision = decided_of(config, entry, OWN, of_below[0])
    assert isinstance(decision, NewPoint) and decision.snapshots == (OWN, of_below[0])


def test_released_early(config: Config, staged: Stage) -> None:
    decision = decided(
        config, staged, LATE, OWN, snapshots_at_release=(OWN.guid,), released_early=True
    )
    assert isinstance(decision, NoPoint) and decision.severity == logging.ERROR
    assert "in the middle of a merge: tank/web@a_hourly, tank/web@b_hourly" in decision.why


def test_published_already(
    config: Config, staged: Stage, manifest: Callable[..., Manifest]
) -> None:
    entry = staged()
    incoming = vault.incoming(config.vault_dir, entry.domain, entry.capture)
    vault.publish(incoming, manifest(capture=entry.capture))
    assert decided_of(config, entry, OWN) == NoPoint("was published already")


def test_nothing_was_stored(config: Config, staged: Stage) -> None:
    entry = staged()
    (StagingDir(config.staging_dir / entry.capture).point / "domain.xml").unlink()
    decision = decided_of(config, entry, OWN)
    assert isinstance(decision, NoPoint) and decision.severity == logging.WARNING
    assert "pre was killed before it had stored anything" in decision.why


def test_vault_that_is_not_mounted(config: Config, staged: Stage) -> None:
    vault.claim(config)
    (config.vault_dir / vault.MARK).unlink()
    with pytest.raises(VaultMissing):
        decided(config, staged, OWN)


LEVELS = [
    pytest.param({}, None, id="memory"),
    pytest.param({"level": PAUSED}, None, id="paused"),
    pytest.param({"level": QUIESCED}, None, id="quiesced"),
    pytest.param({"snapshots_at_release": ()}, "it went on before", id="memory, released before"),
    pytest.param(
        {"level": PAUSED, "snapshots_at_release": ()},
        "it went on before",
        id="paused, released before",
    ),
    pytest.param(
        {"level": QUIESCED, "snapshots_at_release": ()},
        "it went on before",
        id="quiesced, released before",
    ),
    pytest.param({"level": CRASH, "snapshots_at_release": ()}, None, id="crash runs anyway"),
    pytest.param({"level": OFFLINE, "snapshots_at_release": ()}, None, id="offline"),
    pytest.param(
        {"disks_frozen_at_s": 0.0}, "before the disks were frozen", id="memory, disks not frozen"
    ),
    pytest.param(
        {"level": QUIESCED, "disks_frozen_at_s": 0.0},
        "before its file systems were frozen",
        id="quiesced, not frozen",
    ),
    pytest.param({"memory": b""}, "its RAM image is gone from", id="no image"),
    pytest.param(
        {"memory_format": "", "memory": b"LibvirtQemudPart" + bytes(200)},
        "is incomplete",
        id="half an image",
    ),
]


@pytest.mark.parametrize(("changes", "why"), LEVELS)
def test_level(config: Config, staged: Stage, changes: dict[str, Any], why: str | None) -> None:
    decision = decided(config, staged, OWN, **changes)
    assert isinstance(decision, NewPoint) and decision.snapshots == (OWN,)
    assert decision.changes.get("level", None) is (CRASH if why else None)
    assert (why or "") in decision.changes.get("reason", "")


def test_header_of_the_image_was_not_read_yet(config: Config, staged: Stage) -> None:
    assert decided(config, staged, OWN, memory_format="") == NewPoint(
        (OWN,), (), {"memory_format": "raw"}
    )


@pytest.mark.parametrize(("changes", "why"), LEVELS)
def test_less_than_wanted(
    config: Config, staged: Stage, changes: dict[str, Any], why: str | None
) -> None:
    decision = decided(config, staged, OWN, minimum_level=QUIESCED, **changes)
    if why or changes.get("level") is CRASH:
        assert isinstance(decision, NoPoint) and decision.error is LevelMissed
        assert "no point, as less than quiesced is not good enough: " in decision.why
        assert (why or "") in decision.why
    else:
        assert isinstance(decision, NewPoint)


@pytest.mark.parametrize(
    ("newest_txg_before", "too_late"),
    [
        pytest.param(None, (LATE,), id="announced"),
        pytest.param({"tank/web": 1}, (), id="without announced names it may be anybody's"),
    ],
)
def test_snapshots_that_were_taken_too_late(
    config: Config,
    staged: Stage,
    newest_txg_before: dict[str, int] | None,
    too_late: tuple[SnapshotRef, ...],
) -> None:
    decision = decided(
        config,
        staged,
        OWN,
        LATE,
        snapshots_at_release=(OWN.guid,),
        newest_txg_before=newest_txg_before,
    )
    assert decision == NewPoint((OWN,), too_late, {})
