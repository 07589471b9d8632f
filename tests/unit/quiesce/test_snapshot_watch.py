"""A paused guest goes on when its snapshots exist; and what whoever dies leaves is finished."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from tests.fakes.clock import until
from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import LibvirtFailed, ZfsFailed
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, PauseParts
from zvmsnap.points.point import RestorePoint
from zvmsnap.quiesce import let_go, snapshot_watch, thaw
from zvmsnap.quiesce.deadline import enforce_deadline
from zvmsnap.quiesce.snapshot_watch import SnapshotWatch
from zvmsnap.quiesce.watchdog import follower
from zvmsnap.virt.guest import Pause
from zvmsnap.zfs import marks, mounts, zfs

OWNER = Process(4711, 815, "a-boot")
T = "autosnap_2026-11-20_03:00:00"
HOURLY, DAILY = f"tank/web@{T}_hourly", f"tank/web@{T}_daily"
BOTH_NAMES = (f"{T}_hourly", f"{T}_daily")
PAUSED, CRASH = ConsistencyLevel.PAUSED, ConsistencyLevel.CRASH
Hold = Callable[..., Entry]


@pytest.fixture(autouse=True)
def _seams(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "read_table", list)


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captures that were followed to the end."""
    ended: list[str] = []
    follow = SnapshotWatch._follow

    def counted(watch: SnapshotWatch, known: Entry) -> None:
        follow(watch, known)
        ended.append(known.capture)

    monkeypatch.setattr(SnapshotWatch, "_follow", counted)
    return ended


@contextmanager
def watched(config: Config) -> Iterator[None]:
    with snapshot_watch.watch_snapshots(config, OWNER):
        yield


def held(hold: Hold, **changes: Any) -> Entry:
    return hold(PAUSED, **{"owner": OWNER, "preexisting_guids": (), **changes})


def now(config: Config) -> Entry:
    entry = Journal(config.journal_dir).read(UUID)
    assert entry
    return entry


def posted(config: Config) -> list[Manifest]:
    """The manifests, when post has run."""
    call = HookCall(Role.POST, ("tank/web",), BOTH_NAMES)
    after_snapshot.finish_run(call, config, OWNER)
    assert Journal(config.journal_dir).entries() == []
    points = vault.entries(config.vault_dir)
    return [point.manifest for point in points if isinstance(point, RestorePoint)]


def test_goes_on_when_all_names_exist(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    held(hold, snapshot_names=BOTH_NAMES)
    asked: list[int] = []
    guest.at["resume"] = lambda: asked.extend(now(config).snapshots_at_release or ())
    with watched(config):
        pools.present[HOURLY] = 11
        wait_a_little(followed)
        assert guest.paused_because
        pools.present[DAILY] = 12
        until(lambda: followed != [])
    assert guest.calls == ["resume"]
    # It was written down before the guest ran.
    assert sorted(asked) == [11, 12]
    entry = now(config)
    assert (entry.level, entry.paused, entry.state) == (PAUSED, False, "released")
    assert sorted(entry.snapshots_at_release or ()) == [11, 12]
    pause_s = entry.pause_s
    assert 5 <= pause_s < 500
    (manifest,) = posted(config)
    assert (manifest.level, manifest.reason) == (PAUSED, None)
    assert manifest.memory and manifest.timing.pause_s == pause_s
    assert sorted(ref.name for ref in manifest.snapshots) == sorted(BOTH_NAMES)
    assert guest.calls == ["resume"]


def wait_a_little(followed: list[str]) -> None:
    """So long that a follower would have seen it; none has ended."""
    looks = threading.Event()
    looks.wait(0.1)
    assert followed == []


def test_not_while_its_ram_is_dumped(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    """What exists then has seen it run, and its name can never appear any more."""
    entry = held(hold, run="now", snapshot_names=("now",), step="dump", disks_frozen_at_s=0.0)
    pools.present["tank/web@now"] = 11
    with watched(config):
        wait_a_little(followed)
        Journal(config.journal_dir).write(
            msgspec.structs.replace(
                entry, disks_frozen_at_s=1.0, held_since_s=uptime_s(), preexisting_guids=(11,)
            )
        )
        until(lambda: followed != [])
    assert guest.calls == []
    assert now(config).snapshots_at_release is None


def test_that_it_follows_is_seen_when_it_has_asked_libvirt_and_zfs(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    hold: Hold,
    followed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = held(hold, step="dump", disks_frozen_at_s=0.0)
    asked = threading.Event()
    seems_to_exist = marks.seems_to_exist

    def ask(name: str) -> bool:
        assert asked.wait(60)
        return seems_to_exist(name)

    monkeypatch.setattr(marks, "seems_to_exist", ask)
    with watched(config):
        wait_a_little(followed)
        assert not is_held(config.locks_dir, follower(entry))
        asked.set()
        until(lambda: is_held(config.locks_dir, follower(entry)))
    until(lambda: not is_held(config.locks_dir, follower(entry)))
    assert list(config.locks_dir.glob("follow-*")) == []


def test_a_watchdog_that_hangs_does_not_seem_to_follow_the_next_run(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    before = held(hold, capture=f"{UUID}.0000000a")
    with lock(config.locks_dir, follower(before), "follow", 0):
        entry = held(hold)
        assert not is_held(config.locks_dir, follower(entry))
        pools.present[f"tank/web@{entry.snapshot_names[0]}"] = 11
        with watched(config):
            until(lambda: followed != [])
    assert guest.calls == ["resume"]


def test_by_the_name_that_sanoid_makes_of_one_that_exists(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    """Clocks were set back: it puts `dst` before the type."""
    pools.present[HOURLY] = 7
    held(hold, preexisting_guids=(7,))
    with watched(config):
        wait_a_little(followed)
        pools.present[f"tank/web@{T}dst_hourly"] = 11
        until(lambda: followed != [])
    assert now(config).snapshots_at_release == (11,)
    assert guest.calls == ["resume"]


def test_a_group_is_held_until_the_snapshots_of_all_exist(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    names = {"request_datasets": ("tank/web", "dozer/db"), "snapshot_names": ("now",)}
    held(hold, run="now", **names)
    with watched(config):
        pools.present["tank/web@now"] = 11
        wait_a_little(followed)
        pools.present["dozer/db@now"] = 12
        until(lambda: followed != [])
    assert now(config).snapshots_at_release == (11,)
    assert guest.calls == ["resume"]


LEFT = [
    pytest.param({"owner": Process(4712, 815, "a-boot")}, id="of another owner"),
    pytest.param({"newest_txg_before": {"tank/web": 5}}, id="no names announced"),
    pytest.param({"paused": False}, id="runs"),
]


@pytest.mark.parametrize("changes", LEFT)
def test_what_is_left_to_post(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, changes: dict[str, Any]
) -> None:
    known = held(hold, **changes)
    pools.present[HOURLY] = 11
    watch = SnapshotWatch(config, OWNER, threading.Event())
    assert not watch._concerns(known)


def test_somebody_else_has_resumed_it(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    held(hold)
    guest.paused_because = None
    pools.present[HOURLY] = 11
    with watched(config):
        until(lambda: followed != [])
    assert guest.calls == []
    (manifest,) = posted(config)
    assert manifest.level is CRASH
    assert manifest.reason and "went on before its snapshot" in manifest.reason


def test_a_snapshot_that_is_destroyed_at_once(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    hold: Hold,
    followed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held(hold)
    monkeypatch.setattr(marks, "seems_to_exist", lambda _name: True)
    with watched(config):
        until(lambda: followed != [])
    assert (guest.calls, now(config).snapshots_at_release) == ([], None)
    assert posted(config) == []
    assert guest.calls == ["resume"]


def test_post_is_faster(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    hold: Hold,
    followed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held(hold)
    monkeypatch.setattr(let_go, "_LOCK_LIMIT_S", 0.05)
    pools.present[HOURLY] = 11
    with lock(config.locks_dir, UUID, "release", 1), watched(config):
        until(lambda: followed != [])
    assert (guest.calls, now(config).snapshots_at_release) == ([], None)


def test_the_deadline_is_faster(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, followed: list[str]
) -> None:
    """It resumes the guest when that was just seen paused, after its snapshots were listed."""
    held(hold)
    pools.present[HOURLY] = 11

    def resumed_by_it() -> None:
        guest.paused_because = None
        raise LibvirtFailed("web: resuming: domain is already running", 55)

    guest.at["resume"] = resumed_by_it
    with watched(config):
        until(lambda: followed != [])
    assert (now(config).paused, now(config).level) == (False, PAUSED)


def test_zfs_that_never_answers_keeps_the_deadline_from_nothing(
    config: Config, guest: FakeGuest, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, answers = threading.Event(), threading.Event()

    def hang(_name: str) -> bool:
        hangs.set()
        return answers.wait(60)

    monkeypatch.setattr(marks, "seems_to_exist", hang)
    held(hold, held_since_s=uptime_s() - 3600)
    with watched(config):
        hangs.wait(60)
        with enforce_deadline(config, OWNER):
            until(lambda: not now(config).paused)
    answers.set()
    assert (guest.calls, now(config).level) == (["resume"], CRASH)


def unreachable(host: FakeHost, pools: FakeZfs, patch: pytest.MonkeyPatch) -> None:
    host.reachable = False


def unlisted(host: FakeHost, pools: FakeZfs, patch: pytest.MonkeyPatch) -> None:
    def fail(_names: object) -> None:
        raise ZfsFailed("zfs list: hangs in the kernel")

    patch.setattr(zfs, "snapshots", fail)


def full(host: FakeHost, pools: FakeZfs, patch: pytest.MonkeyPatch) -> None:
    def fail(_writer: EntryWriter, **_changes: Any) -> None:
        raise OSError("no space left on device")

    patch.setattr(EntryWriter, "note", fail)


@pytest.mark.parametrize("fault", [unreachable, unlisted, full])
def test_whatever_fails_is_said_once_and_left_to_post(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    pools: FakeZfs,
    hold: Hold,
    followed: list[str],
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[FakeHost, FakeZfs, pytest.MonkeyPatch], None],
) -> None:
    held(hold)
    pools.present[HOURLY] = 11
    with pytest.MonkeyPatch.context() as patch:
        fault(host, pools, patch)
        with watched(config):
            until(lambda: followed != [])
            wait_for = threading.Event()
            wait_for.wait(0.05)
        assert guest.paused_because
    assert len(followed) == 1
    assert caplog.text.count("it waits for post") == 1
    host.reachable = True
    assert [manifest.level for manifest in posted(config)] == [PAUSED]


def test_the_journal_cannot_be_read_now(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(hold)
    pools.present[HOURLY] = 11
    entries, failures = Journal.entries, [1]

    def fail(journal: Journal) -> list[Entry]:
        if failures and failures.pop():
            raise OSError("too many open files")
        return entries(journal)

    monkeypatch.setattr(Journal, "entries", fail)
    with watched(config):
        until(lambda: not now(config).paused)


# -- it is killed between two of its steps


class Killed(BaseException):
    """The watchdog."""


def before_the_note(writer: EntryWriter, guest: FakeGuest) -> None:
    raise Killed


def after_the_note(writer: EntryWriter, guest: FakeGuest) -> None:
    def die() -> None:
        raise Killed

    guest.at["resume"] = die


def after_the_resume(writer: EntryWriter, guest: FakeGuest) -> None:
    note = writer.note

    def noted(**changes: Any) -> None:
        if "was_held_at_release" not in changes:
            raise Killed
        note(**changes)

    writer.note = noted  # type: ignore[method-assign]


KILLED = [
    pytest.param(before_the_note, True, id="before it notes the snapshots"),
    pytest.param(after_the_note, True, id="before it resumes"),
    pytest.param(after_the_resume, False, id="before it notes that the guest runs"),
]
END = ["by post", "off by then", "by the deadline", "guest gone"]


@pytest.mark.parametrize(("dies", "is_paused"), KILLED)
@pytest.mark.parametrize("end", END)
def test_killed(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    hold: Hold,
    dies: Callable[[EntryWriter, FakeGuest], None],
    is_paused: bool,
    end: str,
) -> None:
    entry = held(hold, held_since_s=uptime_s() - 3600)
    pools.present[HOURLY] = 11
    refs = snapshot_match.candidates(entry)
    writer = EntryWriter(Journal(config.journal_dir), entry)
    with pytest.raises(Killed):
        dies(writer, guest)
        thaw.resume_with_snapshots(guest, writer, refs, uptime_s() - 2)
    assert bool(guest.paused_because) is is_paused
    is_noted = dies is not before_the_note
    assert (now(config).was_held_at_release, now(config).paused) == (is_noted, True)
    if end == "off by then":
        guest.shut_off()
    elif end == "guest gone":
        guest.exists = False
    elif end == "by the deadline":
        with enforce_deadline(config, OWNER):
            until(lambda: not now(config).paused)
    (manifest,) = posted(config)
    assert end == "guest gone" or guest.paused_because is None
    is_proven = is_noted or end == "by post"
    assert manifest.level is (PAUSED if is_proven else CRASH)
    assert bool(manifest.memory) is is_proven
    if is_noted:
        assert 3600 <= manifest.timing.pause_s < 3700


def test_the_pause_is_split_where_all_snapshots_were_seen(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold
) -> None:
    entry = held(hold, held_since_s=uptime_s() - 10, pause_parts=PauseParts(ram_s=1, flush_s=2))
    pools.present[HOURLY] = 11
    writer = EntryWriter(Journal(config.journal_dir), entry)
    refs = snapshot_match.candidates(entry)
    assert thaw.resume_with_snapshots(guest, writer, refs, uptime_s() - 4)
    (manifest,) = posted(config)
    parts = manifest.timing.pause_parts
    assert parts.resume_s == pytest.approx(4, abs=0.5)
    assert parts.snapshot_s == pytest.approx(10 - 1 - 2 - 4, abs=0.5)
    assert parts.sum_s == pytest.approx(manifest.timing.pause_s)


def test_seen_paused_for_another_reason(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold
) -> None:
    entry = held(hold)
    guest.paused_because = Pause.IO_ERROR
    writer = EntryWriter(Journal(config.journal_dir), entry)
    assert not thaw.resume_with_snapshots(guest, writer, (), uptime_s())
    assert now(config) == entry
