"""Which snapshots are of a run, if their names change before its point is made."""

import logging
from collections.abc import Callable, Iterable, Mapping

import pytest

from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Lineage, NamedSnapshots

NAME = "autosnap_2026-11-20_03:00:00_hourly"
LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@pytest.mark.parametrize(
    ("now", "found"),
    [
        pytest.param({f"tank/web@{NAME}": 11}, f"tank/web@{NAME}", id="as it was"),
        pytest.param({"tank/web@keep": 11}, "tank/web", id="snapshot was renamed"),
        pytest.param({f"tank/www@{NAME}": 11}, "tank/www", id="dataset was renamed"),
        pytest.param({f"old/web@{NAME}": 11}, None, id="only a replica is left"),
        pytest.param({f"tank/web@{NAME}": 12}, None, id="another has its name"),
        pytest.param({}, None, id="destroyed"),
    ],
)
def test_a_point_that_waits_finds_its_snapshot_by_guid(
    config: Config,
    entry: Callable[..., Entry],
    pools: FakeZfs,
    now: Mapping[str, int],
    found: str | None,
) -> None:
    """As while the vault is away: it was noted at the release which snapshots exist."""
    pools.present = {f"tank/web@{NAME}": 11}
    journal = Journal(config.journal_dir)
    journal.write(entry(snapshot_names=(NAME,)))
    snapshot_match.note(EntryWriter(journal, journal.entries()[0]), LOG)
    (waiting,) = journal.entries()
    assert waiting.snapshots_at_release == (11,)
    pools.present = dict(now)
    refs = snapshot_match.of(waiting)
    if found is None:
        assert refs == ()
        return
    (ref,) = refs
    assert (ref.dataset, ref.name, ref.guid) == ("tank/web", NAME, 11)
    assert (ref.current_dataset or ref.dataset) == found.partition("@")[0]


WEB = {"tank/web": Lineage(5, "")}
REPLACED = {"tank/web": Lineage(6, ""), "tank/web.before": Lineage(5, "")}


@pytest.mark.parametrize(
    ("guid", "current", "now", "is_other"),
    [
        pytest.param(5, "", WEB, False, id="as pre saw it"),
        pytest.param(5, "tank/www", {"tank/www": Lineage(5, "")}, False, id="renamed since"),
        pytest.param(5, "", REPLACED, True, id="another has its name"),
        pytest.param(5, "", {"tank/web": Lineage(6, "")}, True, id="destroyed and made again"),
        pytest.param(
            *(5, "", REPLACED | {"tank/web.before": Lineage(5, "tank/web")}, False),
            id="restored since, so promoted",
        ),
        pytest.param(0, "", REPLACED, False, id="pre did not note which"),
        pytest.param(5, "", {}, False, id="is gone just now"),
    ],
)
def test_snapshots_of_another_dataset(
    entry: Callable[..., Entry],
    monkeypatch: pytest.MonkeyPatch,
    guid: int,
    current: str,
    now: Mapping[str, Lineage],
    is_other: bool,
) -> None:
    monkeypatch.setattr(zfs, "lineages", lambda: now)
    disk = Disk("vda", "file", "raw", "/tank/web/x", "tank/web", "x", dataset_guid=guid)
    ref = SnapshotRef("tank/web", NAME, 11, 101, current)
    others = snapshot_match.of_other_datasets(entry(disks=(disk,)), [ref])
    assert others == ((ref,) if is_other else ())


DST = NAME.replace("_hourly", "dst_hourly")


@pytest.mark.parametrize(
    ("present", "guids", "processes"),
    [
        pytest.param({}, (7,), 0, id="none"),
        pytest.param({"tank/web@mine": 9, f"tank/db@{NAME}": 8}, (7,), 0, id="none of the run"),
        pytest.param({f"tank/web@{NAME}": 11}, (7, 11), 1, id="another sanoid was faster"),
        pytest.param({f"tank/web@{DST}": 12}, (7, 12), 1, id="by the other spelling"),
    ],
)
@pytest.mark.parametrize(
    "level", [ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED]
)
def test_what_exists_when_its_disks_are_frozen_is_none_of_the_run(
    entry: Callable[..., Entry],
    level: ConsistencyLevel,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    present: dict[str, int],
    guids: tuple[int, ...],
    processes: int,
) -> None:
    """A guest that is paused waits for a process only if there is something to list."""
    pools.present = present
    listed: list[object] = []

    def snapshots(names: Iterable[str]) -> NamedSnapshots:
        listed.append(names)
        return pools.snapshots(names)

    monkeypatch.setattr(zfs, "snapshots", snapshots)
    held = entry(snapshot_names=(NAME,), level=level)
    assert snapshot_match.before_freeze(held) == guids
    # A guest on its overlay waits for nothing, and to load libzfs_core takes longer than a process.
    assert len(listed) == (processes if level.holds_guest else 1)
