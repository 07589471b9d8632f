"""A snapshot that is taken while another run of the guest is under way has a point, too."""

import threading
from pathlib import Path

import msgspec
import pytest

from tests.fakes.capture_scene import CRASH, MEMORY, OWNER, RUN, Scene
from tests.fakes.guest import UUID
from tests.fakes.images import make_base
from tests.fakes.zfs_pool import FakeZfs, never
from zvmsnap.capture import all_guests
from zvmsnap.common import log
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Limits
from zvmsnap.finalize import after_snapshot
from zvmsnap.finalize.release import release
from zvmsnap.hooks import main as hooks
from zvmsnap.journal import late, snapshot_match
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.recovery import recover, watchdog_daemon
from zvmsnap.recovery.report import Result
from zvmsnap.retention import leftovers
from zvmsnap.virt import domain_xml

SECOND = Process(4712, 816, "a-boot")
LATE = "autosnap_2026-11-20_03:15:00_frequently"
ALIVE = {OWNER, SECOND}


@pytest.fixture(autouse=True)
def _alive(monkeypatch: pytest.MonkeyPatch) -> None:
    ALIVE.update({OWNER, SECOND})
    monkeypatch.setattr(Process, "is_alive", lambda process: process in ALIVE)


@pytest.fixture
def two(scene: Scene) -> Scene:
    """`web` is on its overlays for a first run."""
    scene.change(limits=Limits(lock_timeout_s=0.05))
    scene.add()
    assert scene.pre()
    return scene


def second_pre(scene: Scene) -> bool:
    call = HookCall(Role.PRE, ("tank/web",), (LATE,))
    return all_guests.begin(call, scene.config, SECOND, never, threading.Event())


def post(scene: Scene, owner: Process) -> bool:
    name = f"{RUN}_hourly" if owner == OWNER else LATE
    return after_snapshot.finish_run(
        HookCall(Role.POST, ("tank/web",), (name,)), scene.config, owner
    )


def take(pools: FakeZfs, name: str, guid: int) -> None:
    pools.present[f"tank/web@{name}"] = guid


def take_first(pools: FakeZfs) -> None:
    take(pools, f"{RUN}_hourly", 11)


def manifests(scene: Scene) -> dict[str, Manifest]:
    points = vault.entries(scene.config.vault_dir)
    return {p.manifest.run: p.manifest for p in points if isinstance(p, RestorePoint)}


def late_point(scene: Scene) -> Manifest | None:
    return manifests(scene).get("autosnap_2026-11-20_03:15:00")


def assert_nothing_left(scene: Scene) -> None:
    scene.assert_at_rest()
    assert late.entries(scene.config.journal_dir) == []
    assert list((scene.config.journal_dir / "late").glob("*")) == []


def test_taken_while_the_guest_is_on_overlays(
    two: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    assert not second_pre(two)
    assert f"level crash: run {RUN} of tank/web is under way" in caplog.text
    take(pools, LATE, 21)
    take_first(pools)
    post(two, SECOND)
    assert late_point(two) is None  # the other run is not over
    assert post(two, OWNER)
    assert [m.level for m in manifests(two).values()] == [MEMORY]
    post(two, SECOND)
    point = late_point(two)
    assert point and point.level is CRASH and point.memory is None
    assert point.reason and f"during another run: run {RUN} of tank/web" in point.reason
    assert [ref.guid for ref in point.snapshots] == [21]
    # Its definition names the guest's own disk, not the overlay that it was on.
    base = two.host.known[0].live["vda"]
    assert [disk.source for disk in point.disks] == [base]
    stored = next(two.config.vault_dir.glob("web/*03:15*/domain.xml"))
    assert [disk.source for disk in domain_xml.parse(stored.read_text()).disks] == [base]
    assert_nothing_left(two)


@pytest.mark.parametrize("intent", ["capture web", "back up web to /backup"])
def test_came_before_the_other_run_had_noted_anything(
    scene: Scene, pools: FakeZfs, intent: str
) -> None:
    scene.change(limits=Limits(lock_timeout_s=0.05))
    scene.add()
    with lock(scene.config.locks_dir, UUID, intent, 1):
        assert not second_pre(scene)
        take(pools, LATE, 21)
    assert scene.pre()
    take_first(pools)
    post(scene, SECOND)
    assert late_point(scene) is None  # the other run is not over
    assert post(scene, OWNER)
    post(scene, SECOND)
    point = late_point(scene)
    assert point and point.level is CRASH
    assert point.reason and f"it is held to {intent}" in point.reason
    assert sorted(m.level for m in manifests(scene).values()) == sorted([CRASH, MEMORY])
    assert_nothing_left(scene)


def test_no_point_of_disks_of_different_times(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The other run has put one disk on an overlay, and the guest writes to the other one."""
    scene.change(limits=Limits(lock_timeout_s=0.05))
    guest = scene.add()
    guest.live["vdb"] = guest.persistent["vdb"] = str(make_base(scene.root / "tank/web/vdb.raw"))
    assert scene.pre()
    journal = Journal(scene.config.journal_dir)
    (entry,) = journal.entries()
    assert {disk.target for disk in entry.disks} == {"vda", "vdb"}
    journal.write(msgspec.structs.replace(entry, disks=entry.disks[:1]))
    assert not second_pre(scene)
    assert "no point: run" in caplog.text
    assert late.entries(scene.config.journal_dir) == []


@pytest.mark.parametrize("call", ["commit vda", "pivot vda"])
def test_taken_while_overlays_are_merged(
    two: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    second_pre(two)
    take_first(pools)
    two.host.known[0].at[call] = lambda: take(pools, LATE, 21)
    assert post(two, OWNER)
    post(two, SECOND)
    assert late_point(two) is None
    assert f"in the middle of a merge: tank/web@{LATE}" in caplog.text
    assert_nothing_left(two)


def test_taken_after_the_merge(two: Scene, pools: FakeZfs) -> None:
    second_pre(two)
    take_first(pools)
    assert post(two, OWNER)
    take(pools, LATE, 21)
    post(two, SECOND)
    point = late_point(two)
    assert point and point.level is CRASH
    assert_nothing_left(two)


def test_came_in_the_middle_of_a_merge(two: Scene, pools: FakeZfs) -> None:
    """Before and after it its snapshots cannot be told apart from those within."""
    take_first(pools)

    def comes() -> None:
        two.change(limits=Limits(lock_timeout_s=0.01))
        thread = threading.Thread(target=second_pre, args=(two,))
        thread.start()
        thread.join()
        take(pools, LATE, 21)

    two.host.known[0].at["commit vda"] = comes
    assert post(two, OWNER)
    post(two, SECOND)
    assert late_point(two) is None
    assert_nothing_left(two)


def test_a_merge_that_is_interrupted_is_one_merge(two: Scene, pools: FakeZfs) -> None:
    second_pre(two)
    take_first(pools)
    guest = two.host.known[0]
    guest.at["pivot vda"] = _failing
    assert not post(two, OWNER)
    take(pools, LATE, 21)
    guest.mirrors.clear()
    assert post(two, OWNER)
    post(two, SECOND)
    assert late_point(two) is None


def _failing() -> None:
    raise ZfsFailed("no pivot")


def test_the_watchdog_makes_the_point_when_the_other_run_has_ended(
    two: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_pre(two)
    take(pools, LATE, 21)
    take_first(pools)
    ALIVE.discard(SECOND)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert (late_point(two) is None) is (len(looks) <= 2)
        if len(looks) == 2:
            assert post(two, OWNER)

    monkeypatch.setattr(watchdog_daemon, "sleep", sleep)
    assert watchdog_daemon.watch(two.config, SECOND)
    assert late_point(two)
    assert_nothing_left(two)


@pytest.mark.parametrize("who", ["recover", "the next pre"])
def test_others_make_the_point(two: Scene, pools: FakeZfs, who: str) -> None:
    second_pre(two)
    take(pools, LATE, 21)
    take_first(pools)
    known = late.entries(two.config.journal_dir)
    assert leftovers.find(two.config).paths == []
    ALIVE.discard(SECOND)
    assert post(two, OWNER)
    if who == "recover":
        dry = recover.recover_guests(two.config, dry_run=True)
        assert [each.result for each in dry.outcomes] == [Result.NEEDED]
        assert late.entries(two.config.journal_dir) == known
        report = recover.recover_guests(two.config)
        assert [each.result for each in report.outcomes] == [Result.RECOVERED]
        assert_nothing_left(two)
    else:
        assert two.pre("daily")
    assert late_point(two)


def test_one_process_comes_late_twice(two: Scene, pools: FakeZfs) -> None:
    """zrepl's daemon does, and lives on."""
    assert not second_pre(two)
    take(pools, LATE, 21)
    other = LATE.replace("03:15", "03:30")
    call = HookCall(Role.PRE, ("tank/web",), (other,))
    assert not all_guests.begin(call, two.config, SECOND, never, threading.Event())
    take(pools, other, 22)
    take_first(pools)
    assert post(two, OWNER)
    post(two, SECOND)
    levels = {run: manifest.level for run, manifest in manifests(two).items()}
    assert levels == {
        RUN: MEMORY,
        "autosnap_2026-11-20_03:15:00": CRASH,
        "autosnap_2026-11-20_03:30:00": CRASH,
    }
    assert_nothing_left(two)


def test_a_late_run_whose_snapshot_was_not_taken_leaves_nothing(two: Scene, pools: FakeZfs) -> None:
    second_pre(two)
    take_first(pools)
    assert post(two, OWNER)
    post(two, SECOND)
    assert late_point(two) is None
    assert_nothing_left(two)


@pytest.mark.parametrize("mode", ["memory,required", "quiesced,required"])
def test_no_point_of_less_than_is_required(two: Scene, mode: str) -> None:
    two.modes["tank/web"] = {"": mode}
    assert not second_pre(two)
    assert late.entries(two.config.journal_dir) == []


def test_a_lock_that_no_run_holds_is_no_other_run(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """For instance a restore, which renames the datasets."""
    scene.change(limits=Limits(lock_timeout_s=0.05))
    scene.add()
    with lock(scene.config.locks_dir, UUID, "restore web", 1):
        assert not second_pre(scene)
    assert late.entries(scene.config.journal_dir) == []
    assert "no point: waited" in caplog.text


def test_a_release_goes_on_though_late_runs_cannot_be_told(
    two: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    second_pre(two)
    take_first(pools)
    (file,) = (two.config.journal_dir / "late").glob("*/*.json")
    file.unlink()
    file.mkdir()
    (entry,) = two.entries()
    writer = EntryWriter(Journal(two.config.journal_dir), entry)
    release(two.config, two.host.known[0], writer, log.about("web", "tank/web"))
    assert "in the middle of a merge" in caplog.text
    assert Path(two.host.known[0].live["vda"]).suffix == ".raw"


def test_a_late_run_of_old_is_never_taken_for_one_that_was_in_no_merge(
    two: Scene, pools: FakeZfs
) -> None:
    """Whoever merged died before it noted the end: what came after the begin is unknown."""
    second_pre(two)
    take(pools, LATE, 21)
    late.merge_begins(two.config.journal_dir, UUID)
    take(pools, LATE, 22)
    (entry,) = late.entries(two.config.journal_dir)
    assert entry.before_merge == (21,)
    existing = snapshot_match.candidates(entry)
    assert late.not_spoilt(entry, existing) == ()
    late.merge_ended(two.config.journal_dir, UUID)
    (entry,) = late.entries(two.config.journal_dir)
    assert (entry.before_merge, entry.spoilt) == (None, (22,))
    assert late.not_spoilt(msgspec.structs.replace(entry, spoilt=()), existing) == existing


def test_a_caller_that_calls_post_only_after_success_calls_it_for_a_late_run(two: Scene) -> None:
    assert not second_pre(two)
    assert hooks._waits_for_post(two.config, SECOND)
