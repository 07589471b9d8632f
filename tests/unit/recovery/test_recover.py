import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import OTHER, UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import holds, make_base, make_overlay, write
from tests.fakes.restore_case import put_back
from tests.fakes.restore_scene import NEW, OLD, Killed, Scene
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.common.errors import GuestNotFound, HypervisorUnreachable, LibvirtFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import staging
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.points import memory_image, vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.recovery import recover
from zvmsnap.recovery.report import Result
from zvmsnap.zfs import mounts

Stage = Callable[..., Entry]
T = "autosnap_2026-11-20_03:00:00"
DEAD = Process(4711, 815, "a-boot")


@pytest.fixture(autouse=True)
def _seams(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setattr(mounts, "read_table", list)


def points(config: Config) -> list[str]:
    return [
        point.name for point in vault.entries(config.vault_dir) if isinstance(point, RestorePoint)
    ]


def tree(config: Config) -> list[tuple[str, bytes]]:
    """All files of zvmsnap, but locks."""
    root = config.staging_dir.parent
    return [
        (str(path.relative_to(root)), path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if not path.is_relative_to(config.locks_dir)
    ]


def own() -> Process:
    return Process.of(os.getpid())


def damage(config: Config) -> None:
    path = config.journal_dir / f"{UUID}.json"
    path.write_bytes(path.read_bytes()[:-20])


TABLE = [
    pytest.param(own, True, True, None, Result.UNDER_WAY, [], id="open, sanoid runs, overlay"),
    pytest.param(own, False, True, None, Result.UNDER_WAY, [], id="open, sanoid runs, base"),
    pytest.param(
        lambda: DEAD, True, True, None, Result.RECOVERED, [f"web@{T}"], id="open, dead, overlay"
    ),
    pytest.param(
        lambda: DEAD, False, True, None, Result.RECOVERED, [f"web@{T}"], id="open, dead, base"
    ),
    pytest.param(own, True, False, None, Result.RECOVERED, [], id="no journal, overlay"),
    pytest.param(own, True, True, damage, Result.RECOVERED, [], id="damaged journal, overlay"),
    pytest.param(own, False, False, None, None, [], id="no journal, base"),
]


@pytest.mark.parametrize(("owner", "frozen", "journal", "deface", "result", "published"), TABLE)
@pytest.mark.parametrize("running", [True, False], ids=["runs", "off"])
def test_table(
    config: Config,
    guest: FakeGuest,
    staged: Stage,
    owner: Callable[[], Process],
    frozen: bool,
    journal: bool,
    deface: Callable[[Config], None] | None,
    result: Result | None,
    published: list[str],
    running: bool,
) -> None:
    known = staged(owner=owner(), frozen=frozen)
    if not running:
        guest.shut_off()
    if not journal:
        Journal(config.journal_dir).close(known)
    if deface:
        deface(config)
    before = guest.xml()

    report = recover.recover_guests(config, "web")
    assert [outcome.result for outcome in report.outcomes] == ([result] if result else [])
    assert report.complete
    assert points(config) == published
    open_entries = Journal(config.journal_dir).entries()
    if result is Result.UNDER_WAY:
        assert report.outcomes[0].why == f"sanoid has pid {os.getpid()}"
        assert (guest.xml(), open_entries) == (before, [known])
    else:
        assert guest.persistent["vda"].endswith("vda.raw")
        assert holds(Path(guest.persistent["vda"]), 7) is frozen
        assert open_entries == []
        assert not Path(known.disks[0].overlay).exists()
    assert guest.active is running
    assert (config.journal_dir / f"{UUID}.damaged.seen").exists() is (deface is not None)


@pytest.mark.parametrize(("owner", "frozen", "journal", "deface", "result", "published"), TABLE)
def test_dry_run_has_the_same_findings_and_changes_nothing(
    config: Config,
    guest: FakeGuest,
    staged: Stage,
    owner: Callable[[], Process],
    frozen: bool,
    journal: bool,
    deface: Callable[[Config], None] | None,
    result: Result | None,
    published: list[str],
) -> None:
    known = staged(owner=owner(), frozen=frozen)
    if not journal:
        Journal(config.journal_dir).close(known)
    if deface:
        deface(config)
        Journal(config.journal_dir).entries()  # renames it
    before = (tree(config), guest.xml())
    report = recover.recover_guests(config, dry_run=True)
    wanted = Result.NEEDED if result is Result.RECOVERED else result
    assert [outcome.result for outcome in report.outcomes] == ([wanted] if wanted else [])
    assert (tree(config), guest.xml()) == before
    # A guest is on it: nobody must be told to remove it.
    assert report.problems == []
    assert known.disks[0].overlay not in report.removed


def test_findings(config: Config, guest: FakeGuest, staged: Stage) -> None:
    known = staged()
    (outcome,) = recover.recover_guests(config, dry_run=True).outcomes
    assert (outcome.domain, outcome.uuid) == ("web", UUID)
    assert outcome.findings == (
        f"run {T} is open at step frozen",
        f"vda is on {known.disks[0].overlay}",
    )


@pytest.mark.parametrize("gone", ["destroyed", "unknown"])
def test_guest_that_is_gone_keeps_its_overlay(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, gone: str
) -> None:
    known = staged()
    if gone == "destroyed":
        guest.exists = False
    else:
        host.known.clear()
    overlay = Path(known.disks[0].overlay)
    report = recover.recover_guests(config)
    assert [outcome.result for outcome in report.outcomes] == [Result.RECOVERED]
    assert points(config) == [f"web@{T}"]
    assert overlay.exists()
    (problem,) = report.problems
    assert problem.startswith(f"{overlay}: kept; no guest uses it, but it holds writes that")
    assert f"qemu-img commit {overlay}" in problem
    assert not report.complete
    assert recover.recover_guests(config).problems == [problem]


def test_a_failure_is_reported_and_stops_no_other(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, tmp_path: Path
) -> None:
    known = staged()
    other = FakeGuest("db", OTHER, vda=make_base(tmp_path / "tank" / "db.raw"))
    lost = StagingDir(config.staging_dir / f"{OTHER}.00000001")
    write(other.on_overlay("vda", lost.overlay("vda")), 9)
    host.known.append(other)

    def fail() -> None:
        raise LibvirtFailed("no pivot", 38)

    guest.at["pivot vda"] = fail
    report = recover.recover_guests(config)
    assert [(each.domain, each.result) for each in report.outcomes] == [
        ("db", Result.RECOVERED),
        ("web", Result.FAILED),
    ]
    assert "no pivot" in report.outcomes[1].why
    assert not report.complete
    assert holds(tmp_path / "tank" / "db.raw", 9)
    assert Path(known.disks[0].overlay).exists()
    guest.mirrors.clear()
    assert recover.recover_guests(config).complete


def test_overlay_of_a_guest_that_could_not_be_recovered_is_never_removed(
    config: Config, guest: FakeGuest
) -> None:
    # Off, without a journal entry, nothing written yet, its lock held: only the name tells.
    capture = StagingDir(config.staging_dir / f"{UUID}.00000001")
    overlay = guest.on_overlay("vda", capture.overlay("vda"))
    guest.shut_off()
    hasty = msgspec.structs.replace(config, limits=Limits(lock_timeout_s=0.01))
    with lock(config.locks_dir, UUID, "capture web", 1):
        report = recover.recover_guests(hasty)
    assert [outcome.result for outcome in report.outcomes] == [Result.FAILED]
    assert overlay.exists()
    assert report.removed == []
    assert recover.recover_guests(config).complete
    assert not overlay.exists()


def test_guest_whose_next_start_would_be_on_an_overlay(
    config: Config, guest: FakeGuest, staged: Stage
) -> None:
    Journal(config.journal_dir).close(staged())
    guest.live["vda"] = guest.below[guest.live["vda"]]
    (outcome,) = recover.recover_guests(config, "web").outcomes
    assert outcome.result is Result.RECOVERED
    assert guest.persistent == guest.live


def test_what_somebody_else_made_is_reported_and_stays(
    config: Config, guest: FakeGuest, tmp_path: Path
) -> None:
    guest.snapshots = ["by hand"]
    report = recover.recover_guests(config)
    assert report.foreign == [
        "web: libvirt's snapshot by hand was made by somebody else; not touched"
    ]
    assert (report.complete, guest.calls) == (True, [])


def test_somebodys_overlay_on_ours_fails_and_both_stay(
    config: Config, guest: FakeGuest, staged: Stage, tmp_path: Path
) -> None:
    known = staged()
    ours = Path(known.disks[0].overlay)
    theirs = guest.on_overlay("vda", tmp_path / "tank" / "theirs.qcow2", ours)
    (outcome,) = recover.recover_guests(config).outcomes
    assert outcome.result is Result.FAILED
    assert (
        f"{theirs} is on top of it, made by somebody else: end that snapshot first" in outcome.why
    )
    assert ours.exists() and theirs.exists()
    assert guest.calls == []


def test_guests_without_snapshots_are_no_failure(
    config: Config, guest: FakeGuest, staged: Stage
) -> None:
    staged()

    def fail() -> None:
        guest.at["snapshot_names"] = fail
        raise LibvirtFailed("not supported", 3)

    entry_names = guest.snapshot_names
    guest.at["snapshot_names"] = lambda: None  # the call of tidy
    report = recover.recover_guests(config)
    assert report.complete and entry_names() == []
    guest.at["snapshot_names"] = fail
    assert recover.recover_guests(config).foreign == ["not supported"]


def test_one_guest_by_name_or_uuid(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, tmp_path: Path
) -> None:
    staged()
    other = FakeGuest("db", OTHER, vda=make_base(tmp_path / "tank" / "db.raw"))
    write(
        other.on_overlay("vda", config.staging_dir / f"{OTHER}.0000000f" / "vda.zvmsnap.qcow2"), 9
    )
    host.known.append(other)
    assert [each.domain for each in recover.recover_guests(config, "web").outcomes] == ["web"]
    assert other.calls == []
    assert [each.domain for each in recover.recover_guests(config, OTHER).outcomes] == ["db"]
    with pytest.raises(GuestNotFound, match="mail: libvirt has no such guest"):
        recover.recover_guests(config, "mail")


def test_guest_that_only_the_journal_knows_has_a_name(
    config: Config, host: FakeHost, staged: Stage
) -> None:
    staged()
    host.known.clear()
    assert [each.domain for each in recover.recover_guests(config, "web").outcomes] == ["web"]


def test_no_hypervisor(config: Config, host: FakeHost, staged: Stage) -> None:
    known = staged()
    host.reachable = False
    with pytest.raises(HypervisorUnreachable):
        recover.recover_guests(config)
    assert Journal(config.journal_dir).entries() == [known]


def test_leftovers(config: Config, tmp_path: Path) -> None:
    untouched, written, broken, empty = (
        StagingDir(config.staging_dir / f"{UUID}.0000000{number}") for number in range(4)
    )
    base = make_base(tmp_path / "tank" / "old.raw")
    for capture in (untouched, written, broken, empty):
        capture.make()
        capture.memory.write_bytes(b"RAM")
    make_overlay(untouched.overlay("vda"), base)
    write(make_overlay(written.overlay("vda"), base), 7)
    broken.overlay("vda").write_bytes(b"no image" * 100)

    before = tree(config)
    dry = recover.recover_guests(config, dry_run=True)
    assert tree(config) == before
    report = recover.recover_guests(config)
    assert (report.removed, report.problems) == (dry.removed, dry.problems)
    assert set(report.removed) == {
        str(path)
        for path in (
            untouched.point,
            untouched.overlay("vda"),
            written.point,
            broken.point,
            empty.path,
        )
    }
    assert [problem.split(":")[0] for problem in report.problems] == [
        str(written.overlay("vda")),
        str(broken.overlay("vda")),
    ]
    assert str(base) in report.problems[0]
    assert sorted(config.staging_dir.iterdir()) == [written.path, broken.path]


def test_overlay_that_was_moved_aside_is_named_until_somebody_sees_to_it(
    config: Config, tmp_path: Path
) -> None:
    capture = StagingDir(config.staging_dir / f"{UUID}.0000000f")
    base = make_base(tmp_path / "tank" / "old.raw")
    write(make_overlay(capture.overlay("vda"), base), 7)
    moved = staging.move_aside(capture.overlay("vda"))
    for _ in range(2):
        report = recover.recover_guests(config)
        (problem,) = report.problems
        assert problem.startswith(f"{moved}: kept; no guest uses it, but it holds writes that")
        assert moved.exists()
    moved.unlink()
    assert recover.recover_guests(config).complete


def test_an_unreadable_overlay_of_one_guest_keeps_no_other_from_its_own(
    config: Config, guest: FakeGuest, tmp_path: Path
) -> None:
    """What is below the one is unknown, so all captures of its guest stay."""
    torn = StagingDir(config.staging_dir / f"{UUID}.00000001").overlay("vda")
    guest.on_overlay("vda", torn)
    guest.shut_off()
    torn.write_bytes(b"torn" * 1000)
    base = make_base(tmp_path / "tank" / "old.raw")
    same = make_overlay(StagingDir(config.staging_dir / f"{UUID}.00000002").overlay("vda"), base)
    other = make_overlay(StagingDir(config.staging_dir / f"{OTHER}.00000003").overlay("vda"), base)
    report = recover.recover_guests(config)
    assert torn.exists() and same.exists() and not other.exists()
    assert [problem.split(":")[0] for problem in report.problems] == [str(torn), str(same)]


def test_overlay_below_somebody_elses_of_a_guest_that_is_off_stays(
    config: Config, guest: FakeGuest, tmp_path: Path
) -> None:
    """libvirt tells no chain of it."""
    ours = StagingDir(config.staging_dir / f"{UUID}.00000001").overlay("vda")
    guest.on_overlay("vda", ours)
    guest.on_overlay("vda", tmp_path / "tank" / "theirs.qcow2", ours)
    guest.shut_off()
    recover.recover_guests(config)
    assert ours.exists()


def test_overlays_are_removed_only_if_all_guests_can_be_asked(
    config: Config, guest: FakeGuest, tmp_path: Path
) -> None:
    capture = StagingDir(config.staging_dir / f"{UUID}.0000000f")
    overlay = make_overlay(capture.overlay("vda"), make_base(tmp_path / "tank" / "old.raw"))

    def fail() -> None:
        guest.at["xml"] = fail
        raise LibvirtFailed("no answer", 38)

    guest.at["xml"] = fail
    report = recover.recover_guests(config)
    assert report.problems == [f"{overlay}: kept; no answer"]
    assert overlay.exists()


def test_vault_that_is_not_mounted_is_a_problem_and_nothing_is_cleared(
    config: Config, guest: FakeGuest, staged: Stage
) -> None:
    vault.claim(config)
    (config.vault_dir / vault.MARK).unlink()
    half = vault.incoming(config.vault_dir, "web", f"{UUID}.0000000f")
    staged()
    report = recover.recover_guests(config)
    assert [outcome.result for outcome in report.outcomes] == [Result.FAILED]
    (problem,) = report.problems
    assert "is its file system mounted?" in problem
    assert half.exists()
    assert guest.live["vda"].endswith("vda.raw")


@pytest.mark.parametrize("exists", [True, False])
def test_recover_entries(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, exists: bool
) -> None:
    known = staged()
    if not exists:
        host.known.clear()
    assert recover.recover_entries(config, [known])
    assert points(config) == [f"web@{T}"]
    assert recover.recover_entries(config, [known])


def test_recover_entries_that_fails_says_so(
    config: Config, guest: FakeGuest, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    known = staged()

    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    guest.at["commit vda"] = fail
    assert not recover.recover_entries(config, [known])
    assert "no commit" in caplog.text


def test_run_that_began_while_the_lock_was_waited_for(
    config: Config, guest: FakeGuest, staged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = staged()
    fresh = msgspec.structs.replace(known, owner=own(), step="dump")
    monkeypatch.setattr(Journal, "read", lambda journal, uuid: fresh)
    monkeypatch.setattr(Journal, "entries", lambda journal: [known])
    (outcome,) = recover.recover_guests(config, "web").outcomes
    assert outcome.result is Result.UNDER_WAY
    assert guest.calls == []


# -- restores and clones that were interrupted


@pytest.fixture
def scene(host_with_points: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> Scene:
    built = host_with_points()
    built.host.install(monkeypatch)
    return built


def interrupted(scene: Scene, what: str, act: str, *, alive: bool = False) -> str:
    """A restore or clone that died before that act; returns the guest's name."""
    point = scene.point()
    memory = point.manifest.memory
    assert memory

    def work() -> None:
        scene.world.acts.clear()
        if what == "clone":
            operation = plan_clone(scene.config, scene.host, point, CloneOptions("w2"))
            CloneCreation(scene.config, scene.host, operation).run()
            return
        image = memory_image.check(point.directory / memory.file, memory)
        put_back(scene, point, image=image)

    act_of = scene.world.act

    def die(name: str) -> object:
        if name == act:
            scene.world.death = (len(scene.world.acts), "before")
        return act_of(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene.world, "act", die)
        with pytest.raises(Killed):
            work()
    scene.world.disarm()
    if not alive:
        (operation,) = scene.operations()
        operations = Operations(scene.config.journal_dir)
        operations.write(msgspec.structs.replace(operation, owner=DEAD))
    return "w2" if what == "clone" else "web"


INTERRUPTED = [
    pytest.param("restore", "save", NEW, id="restore, undone"),
    pytest.param("restore", "load", OLD, id="restore, gone on with"),
    pytest.param("clone", "define", NEW, id="clone, of which libvirt knows nothing"),
    pytest.param("clone", "resume", NEW, id="clone"),
]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("what", "act", "content"), INTERRUPTED)
def test_interrupted_operation(
    scene: Scene, what: str, act: str, content: str, named: bool
) -> None:
    name = interrupted(scene, what, act)
    (operation,) = scene.operations()
    before, shape = tree(scene.config), scene.world.summary()

    dry = recover.recover_guests(scene.config, name if named else None, dry_run=True)
    (outcome,) = dry.outcomes
    assert (outcome.domain, outcome.uuid, outcome.result) == (name, operation.uuid, Result.NEEDED)
    assert outcome.findings == (
        f"{what} of {operation.point} was interrupted at step {operation.step}: "
        "zvmsnap recover ends it",
    )
    assert (tree(scene.config), scene.world.summary()) == (before, shape)
    # What it still needs is not left over.
    assert (dry.removed, dry.problems) == ([], [])

    report = recover.recover_guests(scene.config, name if named else None)
    assert [each.result for each in report.outcomes] == [Result.RECOVERED]
    assert (report.complete, report.removed) == (True, [])
    assert scene.world.pool["tank/web"].content.rstrip("+") == content
    assert [guest.name for guest in scene.host.guests()] == ["web"]
    assert (scene.operations(), scene.staged(), scene.world.mismatches) == ([], [], [])
    assert recover.recover_guests(scene.config).outcomes == []


@pytest.mark.parametrize(("what", "act", "content"), INTERRUPTED)
def test_operation_whose_owner_runs_is_left_alone(
    scene: Scene, what: str, act: str, content: str
) -> None:
    name = interrupted(scene, what, act, alive=True)
    before, shape = tree(scene.config), scene.world.summary()
    for domain in (name, None):
        report = recover.recover_guests(scene.config, domain)
        assert [(o.result, o.why) for o in report.outcomes] == [
            (Result.UNDER_WAY, f"pid {os.getpid()}")
        ]
        assert (tree(scene.config), scene.world.summary()) == (before, shape)


def test_operation_that_cannot_be_ended_is_a_failure_and_stays(scene: Scene) -> None:
    interrupted(scene, "restore", "zfs promote")
    scene.world.acts.clear()
    scene.world.errors = {(number, "before") for number in range(99)}
    (outcome,) = recover.recover_guests(scene.config, "web").outcomes
    assert outcome.result is Result.FAILED
    assert "could not be undone" in outcome.why
    scene.world.disarm()
    assert len(scene.operations()) == 1
    assert recover.recover_guests(scene.config).complete
    assert scene.world.mismatches == []


@pytest.mark.parametrize("meanwhile", ["ended", "begun anew"])
def test_operation_that_somebody_ended_while_the_lock_was_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    interrupted(scene, "restore", "save")
    (operation,) = scene.operations()
    fresh = None if meanwhile == "ended" else msgspec.structs.replace(operation, owner=own())
    monkeypatch.setattr(Operations, "read", lambda operations, uuid: fresh)
    monkeypatch.setattr(Operations, "all", lambda operations: [operation])
    scene.guest.shut_off()
    (outcome,) = recover.recover_guests(scene.config, "web").outcomes
    assert outcome.result is (Result.RECOVERED if meanwhile == "ended" else Result.UNDER_WAY)
    # It would have been started by an end of what was ended.
    assert not scene.guest.active
