import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import OTHER, UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import RAM, holds
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import HypervisorUnreachable, LibvirtFailed, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.finalize import after_snapshot
from zvmsnap.finalize.store import RamStore
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

T = "autosnap_2026-11-20_03:00:00"
FULL = f"tank/web@{T}_hourly"
TANK_WEB = 700  # its guid, as FakeZfs has it
OWNER = Process(4711, 815, "a-boot")
CALL = HookCall(Role.POST, ("tank/web",), (f"{T}_hourly",))
Stage = Callable[..., Entry]
Build = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def _seams(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools.present = {FULL: 11}
    monkeypatch.setattr(mounts, "read_table", list)


def points(config: Config) -> list[RestorePoint]:
    return [point for point in vault.entries(config.vault_dir) if isinstance(point, RestorePoint)]


def image_of(point: RestorePoint) -> bytes:
    """Its RAM image, as libvirt would load it."""
    memory = point.manifest.memory
    assert memory is not None and memory.is_paged
    target = point.directory / "loaded.img"
    memory_image.materialize(point.directory / memory.file, memory, target, xml=None)
    return target.read_bytes()


def is_done(config: Config, guest: FakeGuest) -> bool:
    """On its base with all writes, and nothing of the run is left in journal and staging."""
    base = guest.live["vda"]
    return (
        base.endswith("/vda.raw")
        and guest.persistent["vda"] == base
        and holds(Path(base), 7)
        and Journal(config.journal_dir).entries() == []
        and list(config.staging_dir.iterdir()) == []
    )


def test_a_whole_run(config: Config, guest: FakeGuest, staged: Stage) -> None:
    known = staged(preexisting_guids=(7,))
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    (point,) = points(config)
    manifest = point.manifest
    assert point.name == f"web@{T}"
    assert (manifest.level, manifest.reason, manifest.capture) == ("memory", None, known.capture)
    assert [(ref.full_name, ref.guid) for ref in manifest.snapshots] == [(FULL, 11)]
    assert manifest.memory is not None and manifest.memory.format == "raw"
    assert image_of(point) == RAM
    assert (manifest.host.libvirt, manifest.host.qemu) == ("11.3.0", "10.0.2")
    assert manifest.timing.overlay_s > 0
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert len(points(config)) == 1


@pytest.mark.parametrize("by_hook", [True, False], ids=["hook", "take, watchdog"])
def test_older_ram_goes_when_the_hook_has_published(
    config: Config, staged: Stage, pools: FakeZfs, manifest: Build, by_hook: bool
) -> None:
    """Not by a take, which may take back what it has published."""
    older = manifest(capture=f"{UUID}.0000000f", run="older", created="2020-01-01T00:00:00+00:00")
    older = msgspec.structs.replace(
        older, snapshots=(SnapshotRef("tank/web", "older_hourly", 3, 0, pool_guid=70),)
    )
    directory = vault.incoming(config.vault_dir, "web", older.capture)
    (directory / "memory.img").write_bytes(b"RAM!")
    before = vault.publish(directory, older)
    pools.properties = [("tank", "zvmsnap:keep-memory", "36h")]
    staged(preexisting_guids=(7,))
    finish = after_snapshot.finish_and_tidy if by_hook else after_snapshot.finish_run
    assert finish(CALL, config, OWNER)
    now = read_point(before.directory).manifest
    assert (now.level, now.reason) == (
        ("crash", "RAM removed by keep-memory") if by_hook else ("memory", None)
    )
    assert (before.directory / "memory.img").exists() is not by_hook
    (new,) = [point for point in points(config) if point.directory != before.directory]
    assert image_of(new) == RAM


def test_the_point_says_what_its_disks_are(config: Config, staged: Stage) -> None:
    known = staged()
    part = Partition(2, 1 << 20, 4 << 20)
    disks = (msgspec.structs.replace(known.disks[0], partition=part, dataset_guid=TANK_WEB),)
    Journal(config.journal_dir).write(msgspec.structs.replace(known, disks=disks))
    assert after_snapshot.finish_run(CALL, config, OWNER)
    (point,) = points(config)
    (disk,) = read_point(point.directory).manifest.disks
    assert (disk.dataset_guid, disk.location_in("tank/w2")) == (
        TANK_WEB,
        DiskLocation("tank/w2", "vda.raw", part),
    )


def test_a_dataset_that_got_the_name_since_pre(
    config: Config, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Destroyed and received again, for instance: its snapshot has none of the guest's disks."""
    known = staged()
    disks = (msgspec.structs.replace(known.disks[0], dataset_guid=TANK_WEB - 1),)
    Journal(config.journal_dir).write(msgspec.structs.replace(known, disks=disks))
    assert not after_snapshot.finish_run(CALL, config, OWNER)
    assert points(config) == [] and Journal(config.journal_dir).entries() == []
    assert "not of its point, as another dataset has got the name: tank/web@" in caplog.text


def test_the_state_of_a_tpm(config: Config, guest: FakeGuest, staged: Stage) -> None:
    known = staged(tpm_warning="it changed")
    (config.staging_dir / known.capture / "point" / "tpm.tar").write_bytes(b"keys")
    assert after_snapshot.finish_run(CALL, config, OWNER)
    (point,) = points(config)
    assert point.manifest.tpm_warning == "it changed"
    assert (point.directory / "tpm.tar").read_bytes() == b"keys"


DEAD = Process.none()


@pytest.mark.parametrize(
    ("owner", "call", "belongs"),
    [
        pytest.param(OWNER, CALL, True, id="the same sanoid"),
        pytest.param(
            OWNER, HookCall(Role.POST, ("tank/web",), ("x_daily",)), True, id="whatever the names"
        ),
        pytest.param(DEAD, CALL, True, id="a shell between: a name in common"),
        pytest.param(
            DEAD,
            HookCall(Role.POST, ("tank/web",), (f"{T}dst_hourly",)),
            True,
            id="a name in common, clocks set back",
        ),
        pytest.param(
            DEAD, HookCall(Role.POST, ("tank/web",), ("x_daily",)), False, id="another run"
        ),
        pytest.param(
            OWNER, HookCall(Role.POST, ("tank/db",), (f"{T}_hourly",)), False, id="another dataset"
        ),
        pytest.param(Process.of(os.getpid()), CALL, False, id="of another sanoid that still runs"),
    ],
)
def test_belongs(entry: Stage, owner: Process, call: HookCall, belongs: bool) -> None:
    assert after_snapshot.belongs(entry(owner=owner), call, OWNER) is belongs


def test_no_run_is_under_way(config: Config, host: FakeHost) -> None:
    host.reachable = False
    assert after_snapshot.finish_run(CALL, config, OWNER)


def test_no_hypervisor(config: Config, host: FakeHost, staged: Stage) -> None:
    known = staged()
    host.reachable = False
    with pytest.raises(HypervisorUnreachable):
        after_snapshot.finish_run(CALL, config, OWNER)
    assert Journal(config.journal_dir).entries() == [known]


@pytest.mark.parametrize(
    ("present", "names"),
    [
        pytest.param({FULL: 11}, {FULL}, id="as announced"),
        pytest.param({f"tank/web@{T}dst_hourly": 5}, {f"tank/web@{T}dst_hourly"}, id="dst"),
        pytest.param(
            {FULL: 7, f"tank/web@{T}dst_hourly": 5},
            {f"tank/web@{T}dst_hourly"},
            id="dst, as the name was used: never the older one",
        ),
        pytest.param({FULL: 7}, set(), id="only an older one"),
        pytest.param({}, set(), id="none"),
        pytest.param({f"tank/db@{T}_hourly": 11}, set(), id="one of another guest"),
    ],
)
def test_which_snapshots(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    staged: Stage,
    present: dict[str, int],
    names: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    staged(preexisting_guids=(7,))
    pools.present = present
    assert after_snapshot.finish_run(CALL, config, OWNER) is bool(names)
    assert is_done(config, guest)
    assert {ref.full_name for point in points(config) for ref in point.manifest.snapshots} == names
    assert ("the RAM image is discarded" in caplog.text) is not bool(names)


@pytest.mark.parametrize(
    ("changes", "level", "reason"),
    [
        pytest.param({}, ConsistencyLevel.MEMORY, "", id="complete"),
        pytest.param({"memory_format": ""}, ConsistencyLevel.MEMORY, "", id="header not read yet"),
        pytest.param(
            {"memory_format": "", "memory": b"LibvirtQemudPart" + bytes(200)},
            ConsistencyLevel.CRASH,
            "is incomplete",
            id="header not read yet, and half a dump",
        ),
        pytest.param(
            {"memory": b""}, ConsistencyLevel.CRASH, "its RAM image is gone", id="RAM is gone"
        ),
        pytest.param(
            {"disks_frozen_at_s": 0.0},
            ConsistencyLevel.CRASH,
            "before the disks were frozen",
            id="of a later instant than the snapshot",
        ),
        pytest.param(
            {"level": ConsistencyLevel.CRASH, "reason": "paused"},
            ConsistencyLevel.CRASH,
            "paused",
            id="crash",
        ),
    ],
)
def test_level_of_the_point(
    config: Config,
    guest: FakeGuest,
    staged: Stage,
    changes: dict[str, object],
    level: ConsistencyLevel,
    reason: str,
) -> None:
    staged(**changes)
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    (point,) = points(config)
    assert point.manifest.level is level
    assert reason in (point.manifest.reason or "")
    assert (point.manifest.memory is not None) is (level is ConsistencyLevel.MEMORY)
    assert (point.directory / "memory.pages").exists() is (level is ConsistencyLevel.MEMORY)


def test_killed_before_anything_was_stored(
    config: Config, guest: FakeGuest, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    known = staged()
    (config.staging_dir / known.capture / "point" / "domain.xml").unlink()
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    assert points(config) == []
    assert "no point: pre was killed" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"<domain>", b"\xff\xfe", b"<domain><memory>x</memory></domain>"]
)
def test_a_damaged_definition_is_no_reason_for_no_point(
    config: Config, guest: FakeGuest, staged: Stage, content: bytes
) -> None:
    known = staged()
    (config.staging_dir / known.capture / "point" / "domain.xml").write_bytes(content)
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    (point,) = points(config)
    assert point.manifest.host.machine == ""


def fail_to_commit(guest: FakeGuest) -> None:
    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    guest.at["commit vda"] = fail


def test_what_is_not_on_its_base_is_not_published(
    config: Config, guest: FakeGuest, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    staged()
    fail_to_commit(guest)
    assert not after_snapshot.finish_run(CALL, config, OWNER)
    assert points(config) == []
    assert [entry.step for entry in Journal(config.journal_dir).entries()] == ["commit"]
    assert "web (tank/web): commit:" in caplog.text
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    assert len(points(config)) == 1


def full(*_arguments: object, **_named: object) -> None:
    raise OSError("no space left on device")


def no_store(patch: pytest.MonkeyPatch, config: Config) -> None:
    patch.setattr(RamStore, "store", full)


def no_publish(patch: pytest.MonkeyPatch, config: Config) -> None:
    patch.setattr(vault, "publish", full)


def no_removal(patch: pytest.MonkeyPatch, config: Config) -> None:
    patch.setattr(shutil, "rmtree", full)


def no_close(patch: pytest.MonkeyPatch, config: Config) -> None:
    patch.setattr(Journal, "close", full)


def not_mounted(patch: pytest.MonkeyPatch, config: Config) -> None:
    vault.claim(config)
    mark = config.vault_dir / vault.MARK
    patch.setattr(vault, "_read_mark", lambda path: b"" if path == mark else path.read_bytes())


@pytest.mark.parametrize("fault", [no_store, no_publish, no_removal, no_close, not_mounted])
def test_publication_that_failed_is_repeated(
    config: Config,
    guest: FakeGuest,
    staged: Stage,
    fault: Callable[[pytest.MonkeyPatch, Config], None],
) -> None:
    staged()
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, config)
        assert not after_snapshot.finish_run(CALL, config, OWNER)
    # The guest needs no vault to be back on its base.
    assert guest.live["vda"].endswith("vda.raw")
    assert len(Journal(config.journal_dir).entries()) == 1
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert is_done(config, guest)
    (point,) = points(config)
    assert point.manifest.level is ConsistencyLevel.MEMORY
    assert image_of(point) == RAM
    assert vault.unfinished(config.vault_dir) == []


def test_guest_that_does_not_exist_any_more_keeps_its_overlay(
    config: Config, guest: FakeGuest, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    known = staged()
    guest.exists = False
    assert after_snapshot.finish_run(CALL, config, OWNER)
    assert Path(known.disks[0].overlay).exists()
    assert Journal(config.journal_dir).entries() == []
    assert len(points(config)) == 1
    assert "does not exist any more; its overlays, if any, are kept" in caplog.text


def test_one_guest_that_fails_stops_no_other(
    config: Config, guest: FakeGuest, host: FakeHost, staged: Stage, entry: Stage
) -> None:
    other = FakeGuest("db", OTHER, vda=Path(guest.live["vda"]))
    host.known.append(other)
    Journal(config.journal_dir).write(entry(domain="db", uuid=OTHER, disks=()))

    def fail() -> None:
        raise LibvirtFailed("db: no answer", 38)

    other.at["xml"] = fail
    staged()
    assert not after_snapshot.finish_run(CALL, config, OWNER)
    assert [entry.domain for entry in Journal(config.journal_dir).entries()] == ["db"]
    assert len(points(config)) == 1


def test_run_that_somebody_else_finished_meanwhile(
    config: Config, guest: FakeGuest, staged: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    known = staged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "read", lambda *_: None)
        patch.setattr(Journal, "entries", lambda *_: [known])
        assert after_snapshot.finish_run(CALL, config, OWNER)
    assert guest.calls == []
    assert "was finished by somebody else" in caplog.text


def test_guest_whose_lock_is_held(config: Config, guest: FakeGuest, staged: Stage) -> None:
    known = staged()
    hasty = msgspec.structs.replace(config, limits=Limits(lock_timeout_s=0.01))
    with lock(config.locks_dir, UUID, "recover", 1):
        assert not after_snapshot.finish_run(CALL, hasty, OWNER)
    assert guest.calls == []
    assert Journal(config.journal_dir).entries() == [known]


def test_interrupted_without_a_journal_entry(
    config: Config, host: FakeHost, guest: FakeGuest, staged: Stage
) -> None:
    Journal(config.journal_dir).close(staged())
    after_snapshot.finish_interrupted(config, host, guest, None)
    assert is_done(config, guest)
    assert points(config) == []


def test_interrupted_and_the_next_start_would_be_on_an_overlay(
    config: Config, host: FakeHost, guest: FakeGuest, staged: Stage
) -> None:
    Journal(config.journal_dir).close(staged())
    guest.live["vda"] = guest.below[guest.live["vda"]]
    after_snapshot.finish_interrupted(config, host, guest, None)
    assert guest.persistent == guest.live
    assert Journal(config.journal_dir).entries() == []


def test_nothing_was_interrupted(config: Config, host: FakeHost, guest: FakeGuest) -> None:
    after_snapshot.finish_interrupted(config, host, guest, None)
    assert guest.calls == []
    assert not config.journal_dir.exists()


def test_a_failure_without_a_journal_entry_leaves_one(
    config: Config, host: FakeHost, guest: FakeGuest, staged: Stage
) -> None:
    Journal(config.journal_dir).close(staged())
    fail_to_commit(guest)
    with pytest.raises(ZvmsnapError):
        after_snapshot.finish_interrupted(config, host, guest, None)
    (left,) = Journal(config.journal_dir).entries()
    assert (left.snapshot_names, left.run, left.owner.is_alive()) == ((), "", False)
    after_snapshot.finish_interrupted(config, host, guest, left)
    assert is_done(config, guest)
    assert points(config) == []


def test_an_interrupted_run_is_published(
    config: Config, host: FakeHost, guest: FakeGuest, staged: Stage
) -> None:
    after_snapshot.finish_interrupted(config, host, guest, staged())
    assert is_done(config, guest)
    assert len(points(config)) == 1


def test_an_interrupted_run_without_a_snapshot_is_no_failure(
    config: Config, host: FakeHost, guest: FakeGuest, pools: FakeZfs, staged: Stage
) -> None:
    pools.present = {}
    after_snapshot.finish_interrupted(config, host, guest, staged())
    assert is_done(config, guest)
    assert points(config) == []
