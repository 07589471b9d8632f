"""take --keep: what was taken by hand goes again, in its turn."""

import json
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.guest import OTHER, DumpedGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from tests.fakes.take_scene import DB, WEB, Pool, configure, two_guests
from tests.fakes.zfs_pool import listed
from zvmsnap.capture import take
from zvmsnap.common import lockfile
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.retention import drop
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, SnapshotListing, SnapshotUsage

Run = Callable[..., tuple[int, str, str]]
BOTH = ("web", "db")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    pool = Pool(tmp_path)
    pool.install(monkeypatch)
    return pool


@pytest.fixture
def host(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return two_guests(tmp_path, config, monkeypatch)


@pytest.fixture
def run(
    tmp_path: Path,
    config: Config,
    pool: Pool,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> Run:
    configure(tmp_path, config, monkeypatch)
    return command


@pytest.fixture
def run_shared(run: Run, host: FakeHost, tmp_path: Path) -> Run:
    """Both guests have their disks on one dataset."""
    host.known[1] = DumpedGuest("db", OTHER, vda=make_base(tmp_path / WEB / "b.raw"))
    return run


def numbered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names as those that are made up, of one second after the other."""
    names = [f"zvmsnap_2026-11-21T10:00:0{number}Z_manual" for number in range(10)]
    left = iter(names)
    monkeypatch.setattr(take, "default_name", lambda: next(left))
    return names


def in_short(out: str) -> str:
    """What was printed, without how long guests stood still."""
    return re.sub(r", stood still for [\d.]+ s", "", out)


def kept(pool: Pool) -> list[str]:
    return sorted(pool.present)


def test_keep(run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = numbered(monkeypatch)
    for name in names[:2]:
        code, out, _ = run("take", "web", "--keep", "2")
        assert (code, in_short(out)) == (0, f"web@{name}: paused\n")
    code, out, _ = run("take", "web", "--keep", "2")
    assert (code, in_short(out)) == (0, f"web@{names[2]}: paused\ndropped web@{names[0]}\n")
    assert kept(pool) == [f"{WEB}@{name}" for name in names[1:3]]
    code, out, _ = run("take", "web", "--keep", "1", "--dry-run")
    assert out.splitlines()[2:] == [f"would drop web@{name}" for name in names[1:3]]
    assert len(pool.present) == 2
    code, out, _ = run("take", "web", "--keep", "1", "--json")
    assert json.loads(out)["dropped"] == [f"web@{name}" for name in names[1:3]]
    assert kept(pool) == [f"{WEB}@{names[4]}"]
    assert json.loads(run("take", "web", "--json")[1])["dropped"] == []


def test_keep_counts_for_each_guest_what_was_named_so(
    run: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = numbered(monkeypatch)
    others = ("before-upgrade", "zvmsnap_manual", "autosnap_2026-11-20_03:00:00_hourly")
    for name in others:
        assert run("take", "web", "--name", name)[0] == 0
    assert run("take", "db")[0] == 0
    assert run("take", "web", "db")[0] == 0
    code, out, _ = run("take", "web", "--keep", "1")
    assert (code, out.splitlines()[1:]) == (0, [f"dropped web@{names[1]}"])
    assert kept(pool) == sorted(
        [
            *(f"{DB}@{name}" for name in names[:2]),
            *(f"{WEB}@{name}" for name in (*others, names[2])),
        ]
    )
    code, out, _ = run("take", "web", "db", "--keep", "1")
    assert set(out.splitlines()[2:]) == {
        *(f"dropped db@{name}" for name in names[:2]),
        f"dropped web@{names[2]}",
    }


def test_keep_leaves_what_cannot_go(run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = numbered(monkeypatch)
    for _ in range(3):
        run("take", "web")
    held = f"{WEB}@{names[0]}"
    pool.usage[held] = SnapshotUsage(pool.present[held], (), 1)
    code, out, err = run("take", "web", "--keep", "1")
    assert code == 0
    assert out.splitlines()[1:] == [f"dropped web@{name}" for name in names[1:3]]
    assert f"web@{names[0]}: kept: {held}: is held" in err
    assert kept(pool) == [held, f"{WEB}@{names[3]}"]


def test_keep_that_another_one_overtakes(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drops the same points, while this one waits for the lock."""
    names = numbered(monkeypatch)
    for _ in range(3):
        run("take", "web")
    lock = lockfile.lock

    def waited(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(drop, "lock", lock)
            if f"{WEB}@{names[0]}" in pool.present:
                assert run("take", "web", "--keep", "2")[0] == 0
        return lock(*arguments)

    monkeypatch.setattr(drop, "lock", waited)
    code, out, err = run("take", "web", "--keep", "3")
    assert code == 0
    assert "kept" not in err and f"web@{names[0]}: was removed meanwhile" in err
    assert f"dropped web@{names[0]}" not in out


def test_snapshots_of_two_guests(run_shared: Run, pool: Pool, config: Config) -> None:
    """Neither guest loses its disks because the other one's point goes."""
    assert run_shared("take", "web", "db", "--name", "x")[0] == 0
    assert kept(pool) == [f"{WEB}@x"]
    code, out, err = run_shared("drop", "--yes", "web@x")
    assert (code, out) == (1, "")
    assert f"{WEB}@x: db@x needs it, too; drop both, or none" in err
    assert kept(pool) == [f"{WEB}@x"]
    code, out, _ = run_shared("drop", "--yes", "web@x", "db@x", "web@latest")
    assert (code, out) == (0, f"drop web@x, db@x:\n  destroy {WEB}@x\n")
    assert (kept(pool), vault.read(config)[0]) == ([], [])


def test_keep_counts_for_both_guests_of_a_dataset(
    run_shared: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = numbered(monkeypatch)
    assert run_shared("take", "web", "db")[0] == 0
    # It takes db, too.
    code, out, _ = run_shared("take", "web", "--keep", "1")
    assert (code, out.splitlines()[2:]) == (0, [f"dropped {each}@{names[0]}" for each in BOTH])
    assert kept(pool) == [f"{WEB}@{names[1]}"]


def test_keep_leaves_what_another_guest_needs(
    run: Run,
    run_shared: Run,
    tmp_path: Path,
    pool: Pool,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = numbered(monkeypatch)
    assert run_shared("take", "web", "db")[0] == 0
    # db has moved away since.
    host = two_guests(tmp_path, config, monkeypatch)
    assert [guest.name for guest in host.known] == ["web", "db"]
    code, out, err = run("take", "web", "--keep", "1")
    assert (code, in_short(out)) == (0, f"web@{names[1]}: paused\n")
    assert f"web@{names[0]}: kept: {WEB}@{names[0]}: db@{names[0]} needs it, too" in err
    assert kept(pool) == [f"{WEB}@{name}" for name in names[:2]]


def test_keep_of_guests_that_share_in_a_row(
    tmp_path: Path, config: Config, pool: Pool, monkeypatch: pytest.MonkeyPatch, command: Run
) -> None:
    """web on one dataset, db on that and another, nix on the other."""
    host = two_guests(tmp_path, config, monkeypatch)
    places = {"vda": tmp_path / WEB / "b.raw", "vdb": tmp_path / DB / "b.raw"}
    bases = {target: make_base(path) for target, path in places.items()}
    host.known[1] = DumpedGuest("db", OTHER, **bases)
    third = "c0ffee00-0000-4000-8000-000000000003"
    host.known.append(DumpedGuest("nix", third, vda=make_base(tmp_path / DB / "c.raw")))
    configure(tmp_path, config, monkeypatch)
    names = numbered(monkeypatch)
    for _ in range(2):
        assert command("take", "web", "db")[0] == 0
    assert command("take", "web", "--keep", "1")[0] == 0
    assert f"{WEB}@{names[0]}" not in kept(pool)
    assert f"{DB}@{names[0]}" not in kept(pool)
    assert f"{DB}@{names[1]}" in kept(pool)


def test_drop_leaves_what_a_point_waits_for(
    run_shared: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = vault.publish

    def full(directory: Path, manifest: Manifest) -> RestorePoint:
        if manifest.domain == "db":
            raise OSError(28, "no space left")
        return publish(directory, manifest)

    monkeypatch.setattr(vault, "publish", full)
    code, _, err = run_shared("take", "web", "db", "--name", "x")
    assert code == 1 and "x: its snapshots exist, but not all of its points do" in err
    code, _, err = run_shared("drop", "--yes", "web@x")
    assert code == 1 and f"{WEB}@x: a point of db waits for it" in err
    assert kept(pool) == [f"{WEB}@x"]


@pytest.mark.parametrize(
    ("dataset", "since", "waits"),
    [
        pytest.param(WEB, {WEB: 0}, True, id="unnamed, of the same"),
        pytest.param("tank/gone", {"tank/gone": 0}, False, id="unnamed, of one that is gone"),
        pytest.param(DB, None, False, id="of another"),
    ],
)
def test_drop_while_a_run_is_open(
    run: Run,
    pool: Pool,
    config: Config,
    entry: Callable[..., Entry],
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    since: dict[str, int] | None,
    waits: bool,
) -> None:
    assert run("take", "web", "--name", "x")[0] == 0
    other = entry(
        uuid="c0ffee00-0000-4000-8000-000000000009", domain="nix", newest_txg_before=since
    )
    disk = msgspec.structs.replace(other.disks[0], dataset=dataset)
    Journal(config.journal_dir).write(msgspec.structs.replace(other, disks=(disk,)))
    code, _, err = run("drop", "--yes", "web@x")
    assert code == waits and ("a point of nix waits for it" in err) is waits
    assert kept(pool) == [f"{WEB}@x"] * waits


def test_required_and_missed_leaves_no_snapshot(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    names = numbered(monkeypatch)
    web = Host.connect("x").guests()[0]
    assert isinstance(web, DumpedGuest)
    agent = web.agent = FakeAgent()

    def thaw() -> None:
        agent.thaw()

    pool.when_taken = thaw
    words = ("take", "web", "--mode", "quiesced,required", "--keep", "1")
    for _ in range(3):
        code, _, err = run(*words)
        assert code == 1 and "was not taken: web: has no point" in err
        assert kept(pool) == []
    pool.when_taken = lambda: None
    assert run(*words)[0] == 0
    assert kept(pool) == [f"{WEB}@{names[3]}"]


def test_keep_when_zfs_does_not_list(run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = numbered(monkeypatch)
    run("take", "web")

    def fail(guids: Container[int] | None = None) -> SnapshotListing:
        raise ZfsFailed("no answer")

    monkeypatch.setattr(zfs, "all_snapshots", fail)
    code, out, err = run("take", "web", "--keep", "1")
    assert (code, in_short(out)) == (0, f"web@{names[1]}: paused\n")
    assert f"web@{names[0]}: kept: no answer" in err


def test_what_was_not_taken_makes_nothing_surplus(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch)
    run("take", "web")
    before = kept(pool)
    pool.fails_after = 0
    assert run("take", "web", "--keep", "1")[0] == 1
    assert kept(pool) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "1", "--name", "x"], "--keep counts points with default names"),
        (["--keep", "0"], "--keep"),
        (["--keep", "x"], "--keep"),
    ],
)
def test_keep_that_makes_no_sense(run: Run, pool: Pool, options: list[str], says: str) -> None:
    code, out, err = run("take", "web", *options)
    assert (code, out, pool.present) == (2, "", {})
    assert says in err


def test_nothing_goes_while_its_pool_is_not_imported(
    run: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("take", "web", "--name", "x")
    monkeypatch.setattr(zfs, "all_snapshots", lambda guids=None: listed([], "other"))
    code, _, err = run("drop", "--yes", "web@x")
    assert code == 1 and f"{WEB}@x: its pool is not imported" in err
    assert kept(pool) == [f"{WEB}@x"]
    assert [point.name for point in vault.read(config)[0]] == ["web@x"]


def test_keep_though_the_clock_stood_in_2031(
    run: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch)
    assert run("take", "web")[0] == 0
    (point,) = vault.read(config)[0]
    future = msgspec.structs.replace(
        point.manifest, created="2031-06-01T00:00:00+00:00", run="zvmsnap_2031_manual"
    )
    vault.rewrite(point, future)
    code, out, _ = run("take", "web", "--keep", "1", "--json")
    taken = json.loads(out)
    assert (code, taken["dropped"]) == (0, [point.name])
    assert [each["name"] for each in taken["points"]] == [
        each.name for each in vault.read(config)[0]
    ]
    assert len(pool.present) == 1


def test_keep_says_when_only_the_clock_can_tell(
    run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch)
    run("take", "web")
    (point,) = vault.read(config)[0]
    (ref,) = point.manifest.snapshots
    elsewhere = msgspec.structs.replace(ref, pool_guid=99)
    vault.rewrite(point, point.manifest.with_snapshots((elsewhere,)))
    assert run("take", "web", "--name", "x")[0] == 0
    assert "which is the latest, only the clock says" in run("show", "web@latest")[2]
    _, _, err = run("take", "web", "--keep", "1")
    assert "web: its points are in several pools: which are the newest, only the clock" in err


def test_drop_goes_by_guid(run: Run, pool: Pool, config: Config) -> None:
    """The snapshot was renamed, and another one has its name."""
    assert run("take", "web", "--name", "x")[0] == 0
    mine = pool.present.pop(f"{WEB}@x")
    for snapshot in (Snapshot(WEB, "keep", mine.guid, mine.createtxg), Snapshot(WEB, "x", 999, 99)):
        pool.present[snapshot.full_name] = snapshot
    assert "no such point" in run("show", "web@neither")[2]
    code, out, _ = run("drop", "--yes", "web@keep")
    assert (code, out) == (0, f"drop web@x:\n  destroy {WEB}@keep\n")
    assert kept(pool) == [f"{WEB}@x"]


def test_a_point_says_which_dataset_and_pool_it_is_of(run: Run, config: Config) -> None:
    assert run("take", "web", "--name", "x")[0] == 0
    (point,) = vault.read(config)[0]
    (ref,) = point.manifest.snapshots
    assert (ref.dataset_guid, ref.pool_guid) == (71, 70)
