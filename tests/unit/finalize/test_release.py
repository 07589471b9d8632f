import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.images import holds, libvirt_image, make_base, make_overlay, write
from zvmsnap.common import log
from zvmsnap.common.errors import CommitFailed, DomainBusy, DomainGone, LibvirtFailed, ZvmsnapError
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import apparmor, live_commit, offline_commit, qemu_img, staging
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize import release as release_module
from zvmsnap.finalize.release import release
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.virt.guest import Pause


class Captured:
    """A guest with two disks, whose journal entry says that it is put on overlays."""

    def __init__(self, tmp_path: Path, config: Config, entry: Entry) -> None:
        self.config = msgspec.structs.replace(config, limits=Limits(busy_timeout_s=2))
        self.bases = {name: make_base(tmp_path / "tank" / f"{name}.raw") for name in ("vda", "vdb")}
        self.guest = FakeGuest("web", UUID, **self.bases)
        self.dir = StagingDir(config.staging_dir / entry.capture)
        disk = entry.disks[0]
        self.disks = tuple(
            msgspec.structs.replace(
                disk, target=target, base=str(base), overlay=str(self.dir.overlay(target))
            )
            for target, base in self.bases.items()
        )
        self.journal = Journal(config.journal_dir)
        self.writer = EntryWriter(self.journal, msgspec.structs.replace(entry, disks=self.disks))

    def freeze(self, *targets: str) -> None:
        """As a memory snapshot does; then the guest writes."""
        self.dir.make()
        for number, target in enumerate(targets or self.bases):
            write(self.guest.on_overlay(target, self.dir.overlay(target)), 7 + number)

    def release(self) -> None:
        release(self.config, self.guest, self.writer, log.about("web", "tank/web"))

    def moved_aside(self) -> list[Path]:
        return staging.moved_aside(self.config.staging_dir)

    def on_base(self) -> bool:
        wanted = {target: str(base) for target, base in self.bases.items()}
        return self.guest.live == wanted and self.guest.persistent == wanted

    def merged(self) -> bool:
        return holds(self.bases["vda"], 7) and holds(self.bases["vdb"], 8)

    def steps(self) -> list[str]:
        entry = self.journal.read(UUID)
        return [entry.step] if entry else []


@pytest.fixture
def run(tmp_path: Path, config: Config, entry: Callable[..., Entry]) -> Captured:
    return Captured(tmp_path, config, entry(request_datasets=("tank/web",)))


def test_running(run: Captured) -> None:
    run.freeze()
    run.release()
    assert run.on_base() and run.merged()
    assert run.guest.calls == ["commit vda", "commit vdb", "pivot vda", "pivot vdb"]
    assert run.dir.overlays() == []
    assert set(run.writer.entry.committed_overlays) == {disk.overlay for disk in run.disks}


def test_off(run: Captured, caplog: pytest.LogCaptureFixture) -> None:
    run.freeze()
    run.guest.shut_off()
    run.release()
    assert run.guest.persistent == {target: str(base) for target, base in run.bases.items()}
    assert run.merged()
    assert run.guest.calls == ["define"]
    assert not run.guest.active
    assert run.dir.overlays() == []
    assert "is off while on its overlays" in caplog.text


def test_on_its_base_already(run: Captured) -> None:
    run.release()
    assert run.guest.calls == []
    run.release()
    assert run.on_base()


@pytest.mark.parametrize("call", ["commit vda", "commit vdb", "pivot vda", "pivot vdb"])
def test_shut_off_while_it_is_committed(run: Captured, call: str) -> None:
    run.freeze()
    run.guest.at[call] = run.guest.shut_off
    run.release()
    assert run.merged()
    assert run.guest.persistent == {target: str(base) for target, base in run.bases.items()}
    assert run.guest.calls[-1] == "define"
    assert run.dir.overlays() == []


@pytest.mark.parametrize("call", ["commit vda", "pivot vda", "pivot vdb"])
def test_gone_while_it_is_committed(run: Captured, call: str) -> None:
    run.freeze()
    run.guest.is_defined = False

    def vanish() -> None:
        run.guest.exists = False

    run.guest.at[call] = vanish
    with pytest.raises(DomainGone):
        run.release()
    # Its data is nowhere else, as it was not pivoted yet.
    assert run.dir.overlay("vdb") in run.dir.overlays()
    assert run.steps() != []


def test_started_while_it_is_merged(run: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    run.freeze()
    run.guest.shut_off()
    redefine = offline_commit._redefine_stopped

    def started(*arguments: Any) -> None:
        monkeypatch.setattr(offline_commit, "_redefine_stopped", redefine)
        run.guest.start()
        write(run.dir.overlay("vda"), 3, at_kib=256)
        redefine(*arguments)

    monkeypatch.setattr(offline_commit, "_redefine_stopped", started)
    run.release()
    assert run.on_base() and run.merged()
    assert holds(run.bases["vda"], 3, at_kib=256)
    assert run.guest.calls == ["commit vda", "commit vdb", "pivot vda", "pivot vdb"]


def test_one_that_is_started_and_stopped_again_and_again_is_an_error(
    run: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.freeze()
    tried = 0

    def flip(*_arguments: Any) -> None:
        nonlocal tried
        tried += 1
        run.guest.active = not run.guest.active
        raise CommitFailed("no")

    monkeypatch.setattr(live_commit, "to_base", flip)
    monkeypatch.setattr(offline_commit, "to_base", flip)
    with pytest.raises(ZvmsnapError, match="no"):
        run.release()
    assert tried == release_module._ATTEMPTS
    assert len(run.dir.overlays()) == 2


def test_persistent_definition_is_mended_if_the_live_one_is_on_the_base(run: Captured) -> None:
    run.freeze("vda")
    run.guest.live["vda"] = str(run.bases["vda"])
    run.writer.note(committed_overlays=(str(run.dir.overlay("vda")),))
    run.release()
    assert run.on_base()
    assert run.guest.calls == ["define"]
    assert run.dir.overlays() == []


def test_persistent_definition_that_cannot_be_mended_is_no_success(run: Captured) -> None:
    run.freeze("vda")
    del run.guest.live["vda"]
    run.writer.note(disks=())  # as if the journal had been lost
    with pytest.raises(CommitFailed, match="the persistent definition still names"):
        run.release()
    assert run.dir.overlays() == [run.dir.overlay("vda")]


RUNS, USER, IO, JOB, OTHER = None, Pause.USER, Pause.IO_ERROR, Pause.JOB, Pause.OTHER


@pytest.mark.parametrize(
    ("pause", "frozen", "ours", "overlays_planned", "resumed"),
    [
        pytest.param(RUNS, True, True, True, False, id="runs"),
        pytest.param(IO, True, False, True, True, id="our overlay was full"),
        pytest.param(IO, False, False, True, False, id="its own disk is full"),
        pytest.param(USER, True, True, True, True, id="zvmsnap paused it to end its dump"),
        pytest.param(USER, True, False, True, False, id="somebody paused it"),
        pytest.param(USER, False, False, True, False, id="somebody paused it before the overlays"),
        pytest.param(JOB, True, False, True, True, id="its dump died"),
        pytest.param(JOB, False, False, True, True, id="its dump died before the overlays"),
        pytest.param(JOB, False, False, False, False, id="a job, but no dump"),
        pytest.param(OTHER, True, True, True, False, id="a watchdog, or debugger"),
    ],
)
def test_resumed(
    run: Captured,
    pause: Pause | None,
    frozen: bool,
    ours: bool,
    overlays_planned: bool,
    resumed: bool,
) -> None:
    if frozen:
        run.freeze()
    if not overlays_planned:
        run.writer.note(
            disks=tuple(msgspec.structs.replace(disk, overlay="") for disk in run.disks)
        )
    run.writer.note(
        paused=ours, level=ConsistencyLevel.MEMORY if overlays_planned else ConsistencyLevel.CRASH
    )
    run.guest.paused_because = pause
    run.release()
    assert ("resume" in run.guest.calls) is resumed
    if resumed:
        # Never before it is on its base: the cause of the pause may last.
        assert run.guest.calls[-1] == "resume"


@pytest.mark.parametrize(
    ("noted", "active", "allowed_ms"),
    [
        pytest.param(None, True, 30, id="not changed"),
        pytest.param(450, True, 450, id="put back"),
        pytest.param(450, False, 30, id="its QEMU is gone"),
    ],
)
def test_allowed_pause(run: Captured, noted: int | None, active: bool, allowed_ms: int) -> None:
    run.guest.allowed_ms = run.guest.allowed_mib_per_s = 30
    run.guest.active = active
    run.writer.note(original_downtime_ms=noted, original_speed_mib=noted)
    run.release()
    assert run.guest.allowed_ms == run.guest.allowed_mib_per_s == allowed_ms


def test_a_job_of_somebody_else_is_waited_for(run: Captured) -> None:
    run.guest.job = True
    with pytest.raises(DomainBusy, match="web: a job"):
        run.release()
    assert run.guest.calls == []


def test_what_is_in_the_way_is_noted_until_it_is_over(run: Captured) -> None:
    run.freeze()
    run.guest.mirrors["vdb"] = "<mirror type='file' job='copy' ready='yes'/>"
    with pytest.raises(DomainBusy, match=r"web: a block job \(copy\) on vdb is under way"):
        run.release()
    entry = run.journal.read(UUID)
    assert entry and entry.in_the_way == "a block job (copy) on vdb"
    run.guest.mirrors.clear()
    run.release()
    assert run.writer.entry.in_the_way == ""
    assert run.on_base() and run.merged()


def test_a_job_that_begins_just_before_the_merge_is_noted(run: Captured) -> None:
    run.freeze()

    def begins() -> None:
        run.guest.job, run.guest.kind_of_job, run.guest.block_jobs = True, "backup", {"vda", "vdb"}
        raise LibvirtFailed("already in active block job", 55)

    run.guest.at["commit vda"] = begins
    with pytest.raises(ZvmsnapError, match="already in active block job"):
        run.release()
    assert run.writer.entry.in_the_way == "a job (backup) on vda, vdb"


def test_a_dump_that_goes_on_is_waited_for(run: Captured) -> None:
    """Its caller was killed; libvirt ends it on overlays."""
    run.guest.job = True

    def ends() -> None:
        run.guest.job = False
        run.freeze()

    run.guest.at["has_job"] = lambda: run.guest.at.update(has_job=ends)
    run.release()
    assert run.on_base() and run.merged()


PARTIAL = b"LibvirtQemudPart" + bytes(100)


class Dump:
    """libvirt's job on the guest, which only an abort ends."""

    def __init__(
        self, run: Captured, monkeypatch: pytest.MonkeyPatch, *, dumps: bool = True
    ) -> None:
        run.guest.job = True
        self.aborts = 0
        self._guest = run.guest
        monkeypatch.setattr(run.guest, "is_dumped", lambda: dumps, raising=False)
        monkeypatch.setattr(run.guest, "abort_job", self.abort, raising=False)

    def abort(self) -> None:
        self.aborts += 1
        self._guest.job = False


def test_a_dump_without_end_is_ended(run: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller was killed, and nobody bounds it any more."""
    dump = Dump(run, monkeypatch)
    run.dir.make()
    run.dir.memory.write_bytes(PARTIAL)
    run.writer.note(step="dump", paused=True)
    run.guest.paused_because = Pause.USER
    run.release()
    assert dump.aborts == 1
    assert run.on_base()
    assert run.guest.paused_because is None


@pytest.mark.parametrize(
    ("image", "dumps", "frozen_at_s"),
    [
        pytest.param(b"", True, 0.0, id="of somebody else: ours has not begun"),
        pytest.param(
            libvirt_image("<domain/>", b"RAM"), True, 0.0, id="of somebody else: ours is over"
        ),
        pytest.param(PARTIAL, False, 0.0, id="another job"),
        pytest.param(PARTIAL, True, 1.0, id="noted to be over"),
    ],
)
def test_no_other_job_is_ended(
    run: Captured, monkeypatch: pytest.MonkeyPatch, image: bytes, dumps: bool, frozen_at_s: float
) -> None:
    dump = Dump(run, monkeypatch, dumps=dumps)
    run.dir.make()
    if image:
        run.dir.memory.write_bytes(image)
    run.writer.note(step="dump", disks_frozen_at_s=frozen_at_s)
    with pytest.raises(DomainBusy, match="web: a job"):
        run.release()
    assert dump.aborts == 0


def test_a_commit_that_runs_already_is_taken_over(run: Captured) -> None:
    run.freeze()
    run.guest.block_commit("vda", str(run.bases["vda"]))
    run.guest.calls.clear()
    run.release()
    assert run.guest.calls == ["commit vdb", "pivot vda", "pivot vdb"]


def test_a_run_without_overlays_waits_for_nobody(run: Captured) -> None:
    run.writer.note(
        level=ConsistencyLevel.CRASH,
        disks=tuple(msgspec.structs.replace(disk, overlay="") for disk in run.disks),
    )
    run.guest.job = True
    run.release()


def back_by_hand(run: Captured) -> None:
    """Somebody has pointed the definitions to the bases, and merged nothing."""
    run.guest.live = {target: str(base) for target, base in run.bases.items()}
    run.guest.persistent = dict(run.guest.live)


def test_unmerged_writes_are_kept(run: Captured, caplog: pytest.LogCaptureFixture) -> None:
    run.freeze()
    back_by_hand(run)
    run.release()
    assert run.dir.overlays() == []
    vda, vdb = run.moved_aside()
    assert f"may hold writes that zvmsnap has not merged: see to {vda}" in caplog.text
    assert f"may hold writes that zvmsnap has not merged: see to {vdb}" in caplog.text
    assert not run.merged()
    # Nothing is lost: it can still be merged.
    qemu_img.merge_down(str(vda))
    assert holds(run.bases["vda"], 7)


def test_an_overlay_without_writes_goes(run: Captured) -> None:
    run.freeze("vda")
    run.guest.on_overlay("vdb", run.dir.overlay("vdb"))
    back_by_hand(run)
    run.release()
    assert run.dir.overlays() == []
    assert [path.name.split(".")[-3] for path in run.moved_aside()] == ["vda"]


def test_writes_after_a_pivot_that_failed_do_not_count_as_merged(run: Captured) -> None:
    run.freeze("vda")

    def fail() -> None:
        raise LibvirtFailed("no pivot", 38)

    run.guest.at["pivot vda"] = fail
    with pytest.raises(ZvmsnapError, match="no pivot"):
        run.release()
    assert run.writer.entry.committed_overlays == (str(run.dir.overlay("vda")),)
    run.guest.mirrors.clear()
    run.guest.at["commit vda"] = fail
    with pytest.raises(ZvmsnapError, match="still on"):
        run.release()
    back_by_hand(run)
    run.release()
    assert run.dir.overlays() == []
    assert [path.name.split(".")[-3] for path in run.moved_aside()] == ["vda"]


@pytest.mark.parametrize("where", ["live", "persistent"])
def test_an_overlay_that_is_named_again_is_never_removed(run: Captured, where: str) -> None:
    run.freeze("vda")
    tidy = release_module._tidy

    def used_again(config: Config, guest: FakeGuest, *rest: Any) -> None:
        getattr(guest, where)["vda"] = str(run.dir.overlay("vda"))
        tidy(config, guest, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_module, "_tidy", used_again)
        with pytest.raises(ZvmsnapError, match=r"vda.zvmsnap.qcow2 is in use again; kept"):
            run.release()
    assert run.dir.overlays() == [run.dir.overlay("vda")]


def test_an_overlay_below_somebody_elses_is_never_removed(run: Captured, tmp_path: Path) -> None:
    run.freeze("vda")
    theirs = run.guest.on_overlay("vda", tmp_path / "tank" / "theirs.qcow2", run.dir.overlay("vda"))
    with pytest.raises(ZvmsnapError, match="made by somebody else: end that snapshot first"):
        run.release()
    assert run.dir.overlays() == [run.dir.overlay("vda")]
    assert run.guest.live["vda"] == str(theirs)
    assert run.guest.calls == []


def test_one_disk_that_cannot_be_committed_stops_no_other(run: Captured) -> None:
    run.freeze()

    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    run.guest.at["commit vda"] = fail
    with pytest.raises(ZvmsnapError, match=r"no commit.*vda is still on"):
        run.release()
    assert run.guest.live["vdb"] == str(run.bases["vdb"])
    run.release()
    assert run.on_base() and run.merged()
    assert run.dir.overlays() == []


class Profile:
    """The guest's AppArmor profile: with a pivot libvirt denies it all that is below its disks."""

    def __init__(self, run: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
        self.denied: set[str] = set()
        self.golden = make_base(run.bases["vda"].with_name("golden.raw"))
        self._pivot = run.guest.block_job_pivot
        self._guest = run.guest
        run.guest.below[str(run.bases["vda"])] = str(self.golden)
        monkeypatch.setattr(run.guest, "block_job_pivot", self.pivot)
        monkeypatch.setattr(apparmor, "denied", lambda _uuid, images: self.denied & set(images))
        monkeypatch.setattr(apparmor, "allow_writes", self.allow)

    def pivot(self, target: str) -> None:
        below = dict(self._guest.below)
        del self._guest.below[self._guest.below[self._guest.live["vda"]]]
        self._pivot(target)
        self._guest.below = below
        self.denied.add(str(self.golden))

    def allow(self, _uuid: str, images: set[str]) -> bool:
        self.denied -= set(images)
        return True


@pytest.mark.parametrize("before", [False, True])
def test_what_is_below_its_base_is_as_writable_as_before(
    run: Captured, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """It is on a snapshot of its user's own, who will commit that."""
    del run.guest.live["vdb"], run.guest.persistent["vdb"], run.bases["vdb"]
    profile = Profile(run, monkeypatch)
    profile.denied = {str(profile.golden)} if before else set()
    run.freeze("vda")
    run.release()
    assert run.on_base()
    assert bool(profile.denied) is before


def test_what_was_writable_before_is_noted_before_the_merge(
    run: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt dies just after the pivot."""
    del run.guest.live["vdb"], run.guest.persistent["vdb"], run.bases["vdb"]
    profile = Profile(run, monkeypatch)
    run.freeze("vda")
    with monkeypatch.context() as patch, pytest.raises(ZvmsnapError, match="killed"):

        def killed(*_arguments: object) -> None:
            raise OSError("killed")

        patch.setattr(live_commit, "prove", killed)
        patch.setattr(apparmor, "allow_writes", lambda *_: True)
        run.release()
    assert profile.denied
    run.release()
    assert not profile.denied


def test_capture_that_no_journal_entry_names_is_removed_with_its_last_overlay(
    run: Captured, config: Config
) -> None:
    lost = StagingDir(config.staging_dir / f"{UUID}.0000000f")
    lost.make()
    lost.memory.write_bytes(b"RAM")
    write(run.guest.on_overlay("vda", lost.overlay("vda")), 7)
    run.writer.note(disks=())
    run.release()
    assert holds(run.bases["vda"], 7)
    assert not lost.path.exists()


def test_libvirts_metadata_of_older_scripts_is_deleted(run: Captured) -> None:
    (name,) = run.writer.entry.snapshot_names
    run.guest.snapshots = [name, "somebody elses"]
    run.release()
    assert run.guest.calls == [f"forget {name}"]
    assert run.guest.snapshots == ["somebody elses"]


def test_everything_is_written_down_before_it_is_done(run: Captured) -> None:
    run.freeze("vda")
    noted: list[tuple[str, tuple[str, ...]]] = []

    def look() -> None:
        entry = run.journal.read(UUID)
        assert entry
        noted.append((entry.step, entry.committed_overlays))

    run.guest.at = {"commit vda": look, "pivot vda": look}
    run.release()
    assert noted == [("commit", ()), ("release vda", (str(run.dir.overlay("vda")),))]
    assert run.steps() == ["tidy"]


def test_logger_is_the_one_of_the_guest(caplog: pytest.LogCaptureFixture, run: Captured) -> None:
    caplog.set_level(logging.WARNING)
    run.freeze("vda")
    run.guest.paused_because = Pause.IO_ERROR
    run.release()
    assert "web (tank/web): is paused because of an I/O error" in caplog.text


# -- what a crash of libvirt or of the machine leaves


def empty(overlay: Path) -> None:
    overlay.touch()


def header_cut_off(overlay: Path) -> None:
    overlay.write_bytes(overlay.read_bytes()[:100])


def tables_cut_off(overlay: Path) -> None:
    overlay.write_bytes(overlay.read_bytes()[:65536])


def garbage(overlay: Path) -> None:
    overlay.write_bytes(b"garbage " * 1000)


def directory(overlay: Path) -> None:
    overlay.unlink()
    overlay.mkdir()


def symlink(overlay: Path) -> None:
    overlay.unlink()
    overlay.symlink_to("/dev/null")


LEAVINGS = [
    pytest.param(empty, False, id="libvirt died before QEMU formatted it"),
    pytest.param(header_cut_off, False, id="torn header"),
    pytest.param(tables_cut_off, True, id="torn tables"),
    pytest.param(garbage, True, id="garbage"),
    pytest.param(directory, True, id="directory"),
    pytest.param(symlink, True, id="symlink"),
]


@pytest.mark.parametrize(("deface", "kept"), LEAVINGS)
def test_leavings_that_no_guest_uses_stop_nothing(
    run: Captured, deface: Callable[[Path], None], kept: bool
) -> None:
    """The guest is on its bases; nothing stays in the way, and nothing that may be data goes."""
    run.dir.make()
    overlay = run.dir.overlay("vda")
    if deface is not empty:
        write(make_overlay(overlay, run.bases["vda"]), 7)
    deface(overlay)
    run.release()
    assert run.dir.overlays() == []
    run.dir.remove()  # as the undo of `staging` does
    assert len(run.moved_aside()) == kept
    assert run.guest.calls == []


def test_guest_that_is_off_on_an_overlay_that_never_came_to_the_disk(run: Captured) -> None:
    run.freeze()
    run.guest.shut_off()
    run.dir.overlay("vda").write_bytes(b"")
    run.release()
    assert run.guest.persistent == {target: str(base) for target, base in run.bases.items()}
    assert holds(run.bases["vdb"], 8)
    assert run.dir.overlays() == run.moved_aside() == []


def test_guest_that_is_off_on_a_torn_overlay_keeps_it(run: Captured) -> None:
    """qemu-img would merge nothing, and call it done: what the guest wrote was gone."""
    run.freeze("vda")
    run.guest.shut_off()
    overlay = run.dir.overlay("vda")
    with overlay.open("r+b") as file:  # its first table
        file.seek(3 << 16)
        file.write(bytes(8))
    for _ in range(2):
        with pytest.raises(ZvmsnapError, match="its tables are torn"):
            run.release()
    assert run.guest.persistent["vda"] == str(overlay)
    assert overlay.exists()


@pytest.mark.parametrize("base_too", [False, True])
def test_overlay_that_qemu_has_open_is_never_removed(run: Captured, base_too: bool) -> None:
    """libvirt died before it had written down that the guest is on it, or before it was."""
    run.dir.make()
    overlay = make_overlay(run.dir.overlay("vda"), run.bases["vda"])
    with ExitStack() as open_files:
        open_files.enter_context(overlay.open("r+b"))
        mode = "r+b" if base_too else "rb"
        open_files.enter_context(run.bases["vda"].open(mode))
        if base_too:
            run.release()
            assert len(run.moved_aside()) == 1
        else:
            with pytest.raises(ZvmsnapError, match=f"process {os.getpid()} writes to"):
                run.release()
            assert overlay.exists()
    run.release()
    assert not overlay.exists()


def test_overlays_that_qemu_has_open_and_no_disk_uses_are_closed(
    run: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    """libvirtd was killed between the opening of all overlays and the switch to them."""
    run.dir.make()
    assert run.guest.qemu
    for target, base in run.bases.items():
        run.guest.qemu.nodes.open(make_overlay(run.dir.overlay(target), base))
    run.release()
    assert run.guest.qemu.nodes.paths == []
    assert run.dir.overlays() == run.moved_aside() == []
    assert "vda.zvmsnap.qcow2 open, which no disk used: closed" in caplog.text
    assert run.guest.calls == []


def test_merged_overlay_that_libvirtd_did_not_close_is_closed_before_it_is_removed(
    run: Captured,
) -> None:
    run.freeze()
    assert run.guest.qemu
    nodes = run.guest.qemu.nodes
    nodes.open(run.dir.overlay("vda"), str(run.bases["vda"]))
    nodes.in_use = {"libvirt-1-format"}
    run.guest.at["pivot vdb"] = nodes.in_use.clear
    run.release()
    assert run.merged() and run.on_base()
    assert nodes.paths == []
    assert run.dir.overlays() == []


def test_overlay_that_qemu_does_not_close_stops_nothing(
    run: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    run.dir.make()
    assert run.guest.qemu
    run.guest.qemu.nodes.open(make_overlay(run.dir.overlay("vda"), run.bases["vda"]))
    run.guest.qemu.nodes.in_use = {"libvirt-1-format"}
    with run.bases["vda"].open("r+b"):  # it writes to the base
        run.release()
    assert "shut down and started again" in caplog.text
    assert len(run.moved_aside()) == 1


def test_qemu_is_not_asked_without_need(run: Captured) -> None:
    run.freeze()
    run.release()
    run.release()
    assert run.guest.asked == []
