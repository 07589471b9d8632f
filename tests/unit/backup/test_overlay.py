"""A guest that runs is backed up on overlays, by the steps of the hooks; and is off them again."""

import errno
import hashlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.backup_job import FakeBackupJob
from tests.fakes.backup_scene import Scene
from tests.fakes.guest import DumpedGuest, FakeProcess
from tests.fakes.images import libvirt_image, make_base, write
from zvmsnap.archive.directory import StoredBackup, described
from zvmsnap.archive.manifest import StoredFile
from zvmsnap.backup import of_guest, overlay, push
from zvmsnap.backup.import_guest import GuestImport
from zvmsnap.backup.import_plan import ImportOptions, Start, plan_import
from zvmsnap.backup.of_guest import Wanted, back_up_guest
from zvmsnap.backup.work import WorkWriter
from zvmsnap.backup.writing import BackupOptions
from zvmsnap.bulk import writing as bulk
from zvmsnap.common import signals
from zvmsnap.common.errors import (
    BackupFailed,
    BackupImpossible,
    Cancelled,
    DomainBusy,
    LibvirtFailed,
    NoSpace,
    NotHeld,
    RunUnderWay,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Limits
from zvmsnap.disks import overlay_chain, qemu_img, staging
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Disk, Entry, EntryState
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.quiesce import watchdog
from zvmsnap.recovery.recover import recover_guests
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Pause
from zvmsnap.virt.host import Host

MEMORY, QUIESCED, CRASH = (
    ConsistencyLevel.MEMORY,
    ConsistencyLevel.QUIESCED,
    ConsistencyLevel.CRASH,
)


class Elsewhere:
    """The guest has a raw disk on no ZFS, and an agent; how it is backed up is configured."""

    def __init__(self, scene: Scene, image: Path, patch: pytest.MonkeyPatch) -> None:
        self.scene = scene
        self.patch = patch
        self.image = make_base(image)
        self.guest = DumpedGuest(vda=image)
        self.guest.agent = FakeAgent()
        scene.guest = self.guest
        scene.host.known[:] = [self.guest]
        self.cancelled = threading.Event()
        self.steps: list[str] = []
        # What happens when such a step is written down.
        self.when: dict[str, Callable[[], None]] = {}
        patch.setattr(of_guest, "cancelled_by_signal", lambda: self.cancelled)
        patch.setattr(of_guest, "cancel_at_once", lambda: None)
        patch.setattr(staging, "check_usable", lambda *_: None)
        patch.setattr(watchdog, "start_watchdog", lambda *_: None)
        patch.setattr(watchdog, "require_watchdog", lambda *_: None)
        self._write = Journal.write
        patch.setattr(Journal, "write", lambda journal, entry: self._written(journal, entry))
        scene.config.staging_dir.mkdir(exist_ok=True)
        self.change(backup_overlay=True)

    def change(self, **keys: object) -> None:
        self.scene.config = msgspec.structs.replace(self.scene.config, **keys)

    def write(self, byte: int, at_kib: int = 0) -> None:
        with self.image.open("r+b") as file:
            file.seek(at_kib << 10)
            file.write(bytes([byte]) * 65536)

    def guest_writes(self, byte: int) -> None:
        """The guest writes, to whatever it is on."""
        write(Path(self.guest.live["vda"]), byte)

    def back_up(self, wanted: Wanted = Wanted.BEST, *exclude: str) -> StoredBackup:
        scene, options = self.scene, BackupOptions(exclude=frozenset(exclude))
        made = back_up_guest(scene.config, scene.host, self.guest, scene.directory, options, wanted)
        assert made
        return made

    def at_rest(self) -> bool:
        """Is nothing left: no overlay, no entry, nothing in staging, no backup in the making?"""
        assert list(self.scene.config.staging_dir.glob("*")) == []
        assert Journal(self.scene.config.journal_dir).entries() == []
        assert overlay_chain.of_guest(self.guest) == {}
        assert self.guest.paused_because is None and not self.agent.frozen
        return self.scene.nothing_left()

    @property
    def agent(self) -> FakeAgent:
        assert self.guest.agent
        return self.guest.agent

    def _written(self, journal: Journal, entry: Entry) -> None:
        self._write(journal, entry)
        if self.steps[-1:] != [entry.step]:
            self.steps.append(entry.step)
            self.when.pop(entry.step, lambda: None)()


@pytest.fixture
def elsewhere(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return Elsewhere(scene, tmp_path / "elsewhere.raw", monkeypatch)


RELEASED = ["commit", "release vda", "tidy", "close"]


def test_full_and_increment(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.write(7, 128)
    convert = qemu_img.convert

    def meanwhile(source: str, target: str, **options: Any) -> None:
        """What the guest writes while it is copied is not in its backup."""
        assert elsewhere.guest.live["vda"].endswith("/vda.zvmsnap.qcow2")
        elsewhere.guest_writes(9)
        convert(source, target, **options)

    monkeypatch.setattr(qemu_img, "convert", meanwhile)
    first = elsewhere.back_up()
    assert (first.manifest.way, first.manifest.consistency) == ("overlay", QUIESCED)
    assert first.manifest.reason == "backup_overlay is set"
    assert elsewhere.steps == [
        *("staging", "definition", "barrier", "freeze", "overlay", "thaw", "frozen"),
        *RELEASED,
    ]
    assert elsewhere.guest.calls == ["freeze", "disk snapshot", "thaw", "commit vda", "pivot vda"]
    monkeypatch.setattr(qemu_img, "convert", convert)
    second = elsewhere.back_up(Wanted.CRASH)
    assert (second.manifest.level, second.manifest.consistency) == ("inc", CRASH)
    assert elsewhere.steps[-7:] == ["definition", "overlay", "frozen", *RELEASED]
    for backup, at, byte in ((first, 128, 7), (first, 0, 0), (second, 128, 7), (second, 0, 9)):
        content = elsewhere.scene.content(backup)
        assert content[at << 10 : (at + 64) << 10] == bytes([byte]) * 65536
    # Its definition names the disk itself.
    for name in ("domain.xml", "persistent.xml"):
        assert str(elsewhere.image) in (second.directory / name).read_text()
    assert elsewhere.at_rest()
    assert vault.all_in(elsewhere.scene.config.vault_dir) == ([], [])


def test_with_its_ram_and_into_another_guest(elsewhere: Elsewhere) -> None:
    elsewhere.guest.equipment = ""
    elsewhere.change(backup_overlay=False)
    elsewhere.guest.dumped = libvirt_image(elsewhere.guest.xml(), b"RAM of now")
    elsewhere.write(7)
    made = elsewhere.back_up(Wanted.STATE)
    assert made.manifest.consistency is MEMORY and made.manifest.reason == ""
    assert made.manifest.memory and made.manifest.memory.format == "raw"
    assert (made.directory / "memory.img").read_bytes() == elsewhere.guest.dumped
    assert "snapshot" in elsewhere.guest.calls and elsewhere.at_rest()
    scene = elsewhere.scene
    options = ImportOptions("tank/vm", "web2", start=Start.RESUME)
    plan = plan_import(scene.config, scene.host, made.directory, options)
    assert str(elsewhere.image) not in plan.of_ram()
    GuestImport.of(scene.config, scene.host, plan).run()
    assert scene.host.guest(plan.uuid).state() == "running"


# -- what it cannot be


def silent(elsewhere: Elsewhere) -> None:
    elsewhere.agent.answering = False


def no_channel(elsewhere: Elsewhere) -> None:
    elsewhere.guest.agent = None


def thaws_alone(elsewhere: Elsewhere) -> None:
    elsewhere.patch.setattr(elsewhere.agent, "freeze", lambda: 2)


def paused(elsewhere: Elsewhere) -> None:
    elsewhere.guest.paused_because = Pause.USER


@pytest.mark.parametrize(
    ("so", "why"),
    [
        (silent, "its agent does not answer"),
        (no_channel, "it has no channel for an agent"),
        (thaws_alone, "its file systems were not frozen|thawed before"),
        (paused, "the guest is paused"),
    ],
)
def test_quiesced_or_not(elsewhere: Elsewhere, so: Callable[[Elsewhere], None], why: str) -> None:
    so(elsewhere)
    with pytest.raises(BackupImpossible, match=f"^web: .*({why})"):
        elsewhere.back_up(Wanted.QUIESCED)
    assert elsewhere.scene.directory.read() == ([], [])
    # Without --quiesce it is less, and says why.
    made = elsewhere.back_up()
    assert made.manifest.consistency is CRASH
    assert why.partition("|")[0] in made.manifest.reason or "thawed" in made.manifest.reason
    assert overlay_chain.of_guest(elsewhere.guest) == {}


def test_without_a_disk_there_is_no_ram(elsewhere: Elsewhere, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other.raw")
    elsewhere.guest.live["vdb"] = elsewhere.guest.persistent["vdb"] = str(other)
    with pytest.raises(BackupImpossible, match=r"not all disks are in this snapshot: vdb \(.*\)$"):
        elsewhere.back_up(Wanted.STATE, "vdb")
    made = elsewhere.back_up(Wanted.CRASH, "vdb")
    assert made.manifest.left_out == ("vdb",)
    assert elsewhere.at_rest()


def test_a_disk_that_is_another_file(elsewhere: Elsewhere) -> None:
    elsewhere.guest.qemu = FakeProcess({str(elsewhere.image): "/moved"}, own_names=True)
    with pytest.raises(BackupImpossible, match="QEMU has another file open"):
        elsewhere.back_up()
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_room_for_overlays_is_judged_first(elsewhere: Elsewhere) -> None:
    elsewhere.change(limits=Limits(overlay_room_mib=1 << 40))
    with pytest.raises(NoSpace, match=r"staging .* has .* MiB free"):
        elsewhere.back_up(Wanted.CRASH)
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_no_guest_is_touched_without_a_watchdog(elsewhere: Elsewhere) -> None:
    def none(*_: object) -> None:
        raise NotHeld("no watchdog runs")

    elsewhere.patch.setattr(watchdog, "require_watchdog", none)
    with pytest.raises(NotHeld):
        elsewhere.back_up()
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_the_guest_is_in_a_run(elsewhere: Elsewhere) -> None:
    config = elsewhere.scene.config
    with lock(config.locks_dir, elsewhere.guest.uuid, "capture web", 0):
        elsewhere.change(limits=Limits(lock_timeout_s=0.01))
        with pytest.raises(RunUnderWay, match="capture web"):
            elsewhere.back_up()
    assert elsewhere.at_rest()


def test_a_job_of_somebody_else(elsewhere: Elsewhere) -> None:
    elsewhere.guest.job = True
    with pytest.raises(DomainBusy):
        elsewhere.back_up()
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_the_guest_is_free_when_checksums_are_taken(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hooks need not wait while all images are read once more."""
    held: dict[str, bool] = {}

    def noting(path: Path) -> StoredFile:
        held[path.name] = is_held(elsewhere.scene.config.locks_dir, elsewhere.guest.uuid)
        return described(path)

    monkeypatch.setattr("zvmsnap.backup.writing.described", noting)
    elsewhere.back_up(Wanted.STATE)
    assert (held["vda.qcow2"], held["memory.img"]) == (False, False)


def other_file_system(elsewhere: Elsewhere, on_write: Callable[[], None] = lambda: None) -> None:
    """Staging is on another one than the backups are; something happens when a part is copied."""

    def rename(old: Any, new: Any, **options: Any) -> None:
        if Path(new).name == "memory.img":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        do_rename(old, new, **options)

    def write_part(file: int, data: bytes) -> None:
        do_write(file, data)
        on_write()

    do_rename, do_write = os.rename, bulk.write
    elsewhere.patch.setattr(os, "rename", rename)
    elsewhere.patch.setattr(bulk, "write", write_part)
    elsewhere.patch.setattr(overlay, "_CHUNK_BYTES", 1000)
    elsewhere.guest.dumped = libvirt_image(elsewhere.guest.xml(), b"RAM of now" * 1000)


def test_staging_on_another_file_system(elsewhere: Elsewhere) -> None:
    flushed: list[int] = []
    other_file_system(elsewhere)
    elsewhere.patch.setattr(bulk.EarlyFlush, "wrote", lambda _flush, count: flushed.append(count))
    made = elsewhere.back_up(Wanted.STATE)
    assert (made.directory / "memory.img").read_bytes() == elsewhere.guest.dumped
    assert sum(flushed) == len(elsewhere.guest.dumped) and max(flushed) == 1000
    stored = made.manifest.memory
    assert stored and stored.sha256 == hashlib.sha256(elsewhere.guest.dumped).hexdigest()
    assert stat.S_IMODE((made.directory / "memory.img").stat().st_mode) == 0o600
    assert elsewhere.at_rest()


def test_interrupted_while_ram_is_copied(elsewhere: Elsewhere) -> None:
    """At once, not when all of it is there."""
    parts: list[None] = []

    def interrupt() -> None:
        parts.append(None)
        elsewhere.cancelled.set()

    other_file_system(elsewhere, interrupt)
    with pytest.raises(Cancelled, match="interrupted: nothing of the backup is kept"):
        elsewhere.back_up(Wanted.STATE)
    assert len(parts) == 1 and elsewhere.scene.directory.read() == ([], [])
    assert elsewhere.at_rest()


def test_ram_that_cannot_be_moved(elsewhere: Elsewhere) -> None:
    """For another reason than that it is on another file system: it is not copied either."""

    def rename(old: Any, new: Any, **options: Any) -> None:
        if Path(new).name == "memory.img":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        do(old, new, **options)

    do = os.rename
    elsewhere.patch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Read-only file system"):
        elsewhere.back_up(Wanted.STATE)
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


# -- what goes wrong on the way


def test_interrupted_by_an_exception_while_it_is_frozen(
    elsewhere: Elsewhere, job: FakeBackupJob
) -> None:
    """A signal is none of the reasons for which less is good enough."""

    def interrupt() -> int:
        raise Cancelled("SIGINT: interrupted")

    elsewhere.patch.setattr(elsewhere.agent, "freeze", interrupt)
    with pytest.raises(Cancelled, match="nothing of the backup is kept"):
        elsewhere.back_up()
    assert job.begun == []
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


def test_interrupted_while_it_is_captured(elsewhere: Elsewhere) -> None:
    elsewhere.when["overlay"] = elsewhere.cancelled.set
    with pytest.raises(Cancelled):
        elsewhere.back_up(Wanted.CRASH)
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


def test_interrupted_while_it_is_copied(elsewhere: Elsewhere) -> None:
    elsewhere.when["frozen"] = elsewhere.cancelled.set
    with pytest.raises(Cancelled, match="nothing of the backup is kept"):
        elsewhere.back_up()
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


def test_staging_runs_full(elsewhere: Elsewhere) -> None:
    def fill() -> None:
        elsewhere.patch.setattr("zvmsnap.backup.overlay.free_bytes", lambda _staging: 255 << 20)

    elsewhere.when["frozen"] = fill
    with pytest.raises(BackupFailed, match="has only 255 MiB left"):
        elsewhere.back_up()
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


def test_it_dies_on_its_overlay(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote is merged by qemu-img; the backup, of the instant before, is as good."""
    convert = qemu_img.convert

    def and_die(source: str, target: str, **options: Any) -> None:
        elsewhere.guest_writes(9)
        elsewhere.guest.shut_off()
        convert(source, target, **options)

    monkeypatch.setattr(qemu_img, "convert", and_die)
    made = elsewhere.back_up()
    assert elsewhere.scene.content(made)[:65536] == bytes(65536)
    assert elsewhere.image.read_bytes()[:65536] == bytes([9]) * 65536
    assert elsewhere.at_rest()


def test_somebody_merges_the_overlay(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = qemu_img.convert

    def merged(source: str, target: str, **options: Any) -> None:
        convert(source, target, **options)
        elsewhere.guest.block_commit("vda", str(elsewhere.image))
        elsewhere.guest.block_job_pivot("vda")

    monkeypatch.setattr(qemu_img, "convert", merged)
    with pytest.raises(BackupFailed, match="somebody has taken vda off its overlay"):
        elsewhere.back_up()
    assert elsewhere.scene.directory.read() == ([], [])


def test_it_cannot_be_merged(elsewhere: Elsewhere) -> None:
    """The entry stays, for the watchdog and `zvmsnap recover`; no backup appears."""

    def fails(_target: str, _base: str) -> None:
        raise LibvirtFailed("no commit")

    elsewhere.patch.setattr(elsewhere.guest, "block_commit", fails)
    with pytest.raises(ZvmsnapError, match="no commit"):
        elsewhere.back_up()
    (entry,) = Journal(elsewhere.scene.config.journal_dir).entries()
    assert entry.backup == str(elsewhere.scene.directory.path)
    assert elsewhere.scene.directory.read() == ([], [])


# -- while libvirt's backup job begins


@pytest.fixture
def job(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> FakeBackupJob:
    """libvirt has its backup job, which is used."""
    elsewhere.change(backup_overlay=False)
    return FakeBackupJob(elsewhere.scene, monkeypatch)


def test_frozen_until_the_job_has_begun(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    seen = []
    job.after = lambda: seen.append(elsewhere.agent.frozen)
    elsewhere.steps.clear()
    for wanted in (Wanted.BEST, Wanted.QUIESCED):
        made = elsewhere.back_up(wanted)
        assert (made.manifest.way, made.manifest.consistency) == ("push", QUIESCED)
    assert seen == [True, True] and elsewhere.guest.calls == ["freeze", "thaw"] * 2
    assert elsewhere.steps[:6] == [
        *("staging", "definition", "barrier", "freeze", "frozen"),
        "tidy",
    ]
    elsewhere.guest.calls.clear()
    assert elsewhere.back_up(Wanted.CRASH).manifest.consistency is CRASH
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_it_thaws_before_the_job_has_begun(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    def thaws() -> None:
        elsewhere.agent.thaw()

    job.after = thaws
    made = elsewhere.back_up()
    assert made.manifest.consistency is CRASH
    assert "thawed before" in made.manifest.reason
    with pytest.raises(BackupFailed, match=r"thawed before .*: nothing of the backup is kept"):
        elsewhere.back_up(Wanted.QUIESCED)
    assert job.calls == ["abort"] and len(elsewhere.scene.directory.read()[0]) == 1
    assert elsewhere.at_rest()


def test_an_agent_that_is_silent(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    silent(elsewhere)
    with pytest.raises(BackupImpossible, match="web: its agent does not answer"):
        elsewhere.back_up(Wanted.QUIESCED)
    assert job.begun == []
    made = elsewhere.back_up()
    assert (made.manifest.way, made.manifest.consistency) == ("push", CRASH)
    assert "its agent does not answer" in made.manifest.reason
    elsewhere.agent.answering = True
    assert elsewhere.at_rest()


def test_it_is_not_frozen_without_a_watchdog(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    def none(*_: object) -> None:
        raise NotHeld("no watchdog runs")

    elsewhere.patch.setattr(watchdog, "require_watchdog", none)
    with pytest.raises(BackupImpossible, match="no watchdog runs"):
        elsewhere.back_up(Wanted.QUIESCED)
    made = elsewhere.back_up()
    assert made.manifest.consistency is CRASH and "no watchdog runs" in made.manifest.reason
    assert elsewhere.guest.calls == [] and elsewhere.at_rest()


def test_libvirt_refuses_its_job(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    job.refuses = lambda _xml, _checkpoint: "Permission denied"
    made = elsewhere.back_up(Wanted.QUIESCED)
    assert (made.manifest.way, made.manifest.consistency) == ("overlay", QUIESCED)
    assert made.manifest.reason == "beginning a backup: Permission denied"
    assert elsewhere.guest.checkpoints == [] and elsewhere.at_rest()


def test_a_guest_that_is_shut_off_before_its_job_begins(
    elsewhere: Elsewhere, job: FakeBackupJob, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(_xml: object, _checkpoint: object) -> str:
        elsewhere.guest.active = False
        return "cannot perform disk backup for inactive domain"

    job.refuses = refuses
    with pytest.raises(BackupFailed, match="web: was shut off meanwhile: nothing was backed up"):
        elsewhere.back_up(Wanted.CRASH)
    assert "overlays" not in caplog.text


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of signals are as before, after the test."""
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_asked_to_stop_while_a_refused_job_is_taken_back(
    elsewhere: Elsewhere, job: FakeBackupJob, handlers: None
) -> None:
    """That is finished first; the guest is not put on overlays after it."""
    job.refuses = lambda _xml, _checkpoint: "Permission denied"
    elsewhere.patch.setattr(of_guest, "cancelled_by_signal", signals.cancelled_by_signal)
    elsewhere.patch.setattr(of_guest, "cancel_at_once", signals.cancel_at_once)

    do = push.take_back

    def take_back(host: Host, writer: WorkWriter) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        do(host, writer)

    elsewhere.patch.setattr(push, "take_back", take_back)
    with pytest.raises(Cancelled, match="SIGTERM: interrupted"):
        elsewhere.back_up()
    assert elsewhere.guest.calls == ["freeze", "thaw"]
    assert elsewhere.at_rest() and elsewhere.scene.directory.read() == ([], [])


@pytest.mark.parametrize(("version", "way"), [("7.1.0", "overlay"), ("10.0.0", "push")])
def test_an_old_libvirt_has_no_job(
    elsewhere: Elsewhere, job: FakeBackupJob, version: str, way: str
) -> None:
    known = {**elsewhere.scene.host.versions(), "libvirt": version}
    elsewhere.patch.setattr(elsewhere.scene.host, "versions", lambda: known)
    made = elsewhere.back_up()
    assert made.manifest.way == way
    assert ("has no backup job" in made.manifest.reason) is (way == "overlay")


def test_neither_way(elsewhere: Elsewhere, job: FakeBackupJob) -> None:
    job.refuses = lambda _xml, _checkpoint: "Permission denied"
    elsewhere.patch.setattr(domain_xml, "why_no_overlay", lambda _disk: "vda is shareable")
    why = r"vda is shareable.* \(beginning a backup: Permission denied\)"
    with pytest.raises(BackupImpossible, match=why):
        elsewhere.back_up()
    assert elsewhere.at_rest()


# -- after a crash


@pytest.mark.parametrize(
    ("step", "changes", "on_overlay", "state"),
    [
        ("staging", {}, False, EntryState.PREPARING),
        ("overlay", {}, True, EntryState.PREPARING),
        ("freeze", {"frozen": True, "level": QUIESCED}, False, EntryState.FREEZING),
        ("dump", {"level": MEMORY}, True, EntryState.DUMPING),
        ("frozen", {"disks_frozen_at_s": 1.0}, True, EntryState.ON_OVERLAYS),
        ("frozen", {"disks_frozen_at_s": 1.0, "level": MEMORY}, True, EntryState.ON_OVERLAYS),
        ("commit", {"disks_frozen_at_s": 1.0}, True, EntryState.COMMITTING),
        ("tidy", {"disks_frozen_at_s": 1.0}, False, EntryState.COMMITTED),
        ("close", {"disks_frozen_at_s": 1.0}, False, EntryState.PUBLISHING),
    ],
)
def test_recovered_at_each_step(
    elsewhere: Elsewhere,
    entry: Callable[..., Entry],
    step: str,
    changes: dict[str, object],
    on_overlay: bool,
    state: EntryState,
) -> None:
    config, guest = elsewhere.scene.config, elsewhere.guest
    capture = StagingDir(config.staging_dir / f"{guest.uuid}.00000001")
    capture.make()
    overlay = capture.overlay("vda")
    if on_overlay:
        guest.on_overlay("vda", overlay)
        elsewhere.guest_writes(9)
    if changes.get("frozen"):
        elsewhere.agent.freeze()
    disk = Disk("vda", "file", "raw", str(elsewhere.image), "", "", str(overlay))
    known = {
        "run": "",
        "snapshot_names": (),
        "preexisting_guids": (),
        "request_datasets": (),
        "backup": str(elsewhere.scene.directory.path),
        "owner": Process.none(),
        "level": CRASH,
    }
    built = entry(uuid=guest.uuid, disks=(disk,), step=step, **{**known, **changes})
    assert built.state is state and not built.is_recovery
    Journal(config.journal_dir).write(built)
    report = recover_guests(config)
    (outcome,) = report.outcomes
    assert outcome.result == "recovered"
    assert f"a backup to {elsewhere.scene.directory.path} is open at step {step}" in (
        outcome.findings
    )
    assert elsewhere.at_rest()
    assert vault.all_in(config.vault_dir) == ([], [])
    if on_overlay:
        assert elsewhere.image.read_bytes()[:65536] == bytes([9]) * 65536
