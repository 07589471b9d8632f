import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.images import holds, make_base, write
from zvmsnap.common import log
from zvmsnap.common.errors import CommitFailed, DomainBusy, DomainGone, LibvirtFailed, ZvmsnapError
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import jobs, live_commit, offline_commit
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize import release
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.virt.guest import Pause


class Moment:
    """A guest with two disks, of which a journal knows that it is put under overlays."""

    def __init__(self, tmp_path: Path, config: Config, entry: Entry) -> None:
        self.config = msgspec.structs.replace(config, limits=Limits(busy_timeout_s=0.01))
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
        self.work = EntryWriter(self.journal, msgspec.structs.replace(entry, disks=self.disks))

    def freeze(self, *targets: str) -> None:
        """As a memory snapshot does; then the guest writes."""
        self.dir.make()
        for number, target in enumerate(targets or self.bases):
            write(self.guest.on_overlay(target, self.dir.overlay(target)), 7 + number)

    def leave(self) -> None:
        release.release(self.config, self.guest, self.work, log.about("web", "tank/web"))

    def on_base(self) -> bool:
        wanted = {target: str(base) for target, base in self.bases.items()}
        return self.guest.live == wanted and self.guest.persistent == wanted

    def merged(self) -> bool:
        return holds(self.bases["vda"], 7) and holds(self.bases["vdb"], 8)

    def steps(self) -> list[str]:
        found = self.journal.read(UUID)
        return [found.step] if found else []


@pytest.fixture
def moment(tmp_path: Path, config: Config, entry: Callable[..., Entry]) -> Moment:
    return Moment(tmp_path, config, entry(request_datasets=("tank/web",)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(live_commit, "_LOOK_EVERY_S", 0.001)


def test_running(moment: Moment) -> None:
    moment.freeze()
    moment.leave()
    assert moment.on_base() and moment.merged()
    assert moment.guest.calls == ["commit vda", "commit vdb", "pivot vda", "pivot vdb"]
    assert moment.dir.overlays() == []
    assert set(moment.work.entry.committed_overlays) == {disk.overlay for disk in moment.disks}


def test_off(moment: Moment, caplog: pytest.LogCaptureFixture) -> None:
    moment.freeze()
    moment.guest.shut_off()
    moment.leave()
    assert moment.guest.persistent == {target: str(base) for target, base in moment.bases.items()}
    assert moment.merged()
    assert moment.guest.calls == ["define"]
    assert not moment.guest.active
    assert moment.dir.overlays() == []
    assert "is off while on its overlays" in caplog.text


def test_on_its_base_already(moment: Moment) -> None:
    moment.leave()
    assert moment.guest.calls == []
    moment.leave()
    assert moment.on_base()


@pytest.mark.parametrize("call", ["commit vda", "commit vdb", "pivot vda", "pivot vdb"])
def test_shut_off_while_it_is_committed(moment: Moment, call: str) -> None:
    moment.freeze()
    moment.guest.at[call] = moment.guest.shut_off
    moment.leave()
    assert moment.merged()
    assert moment.guest.persistent == {target: str(base) for target, base in moment.bases.items()}
    assert moment.guest.calls[-1] == "define"
    assert moment.dir.overlays() == []


@pytest.mark.parametrize("call", ["commit vda", "pivot vda", "pivot vdb"])
def test_gone_while_it_is_committed(moment: Moment, call: str) -> None:
    moment.freeze()
    moment.guest.is_defined = False

    def vanish() -> None:
        moment.guest.exists = False

    moment.guest.at[call] = vanish
    with pytest.raises(DomainGone):
        moment.leave()
    left = set(moment.dir.overlays())
    # What was not pivoted yet is nowhere else.
    assert moment.dir.overlay("vdb") in left
    assert moment.steps() != []


def test_started_while_it_is_merged(moment: Moment, monkeypatch: pytest.MonkeyPatch) -> None:
    moment.freeze()
    moment.guest.shut_off()
    redefine = offline_commit._redefine_stopped

    def started(*arguments: Any) -> None:
        monkeypatch.setattr(offline_commit, "_redefine_stopped", redefine)
        moment.guest.start()
        write(moment.dir.overlay("vda"), 3, at_kib=256)
        redefine(*arguments)

    monkeypatch.setattr(offline_commit, "_redefine_stopped", started)
    moment.leave()
    assert moment.on_base() and moment.merged()
    assert holds(moment.bases["vda"], 3, at_kib=256)
    assert moment.guest.calls == ["commit vda", "commit vdb", "pivot vda", "pivot vdb"]


def test_one_that_is_started_and_stopped_for_ever_is_given_up(
    moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment.freeze()
    tried = 0

    def flip(*_arguments: Any) -> None:
        nonlocal tried
        tried += 1
        moment.guest.active = not moment.guest.active
        raise CommitFailed("no")

    monkeypatch.setattr(live_commit, "to_base", flip)
    monkeypatch.setattr(offline_commit, "to_base", flip)
    with pytest.raises(ZvmsnapError, match="no"):
        moment.leave()
    assert tried == release._ATTEMPTS
    assert len(moment.dir.overlays()) == 2


def test_persistent_definition_is_mended_where_the_live_one_is_back(moment: Moment) -> None:
    moment.freeze("vda")
    moment.guest.live["vda"] = str(moment.bases["vda"])
    moment.work.note(committed_overlays=(str(moment.dir.overlay("vda")),))
    moment.leave()
    assert moment.on_base()
    assert moment.guest.calls == ["define"]
    assert moment.dir.overlays() == []


def test_persistent_definition_that_cannot_be_mended_is_no_success(moment: Moment) -> None:
    moment.freeze("vda")
    del moment.guest.live["vda"]
    moment.work.note(disks=())  # as if the journal had been lost
    with pytest.raises(CommitFailed, match="the persistent definition still names"):
        moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda")]


NOBODYS, WISH, IO, JOB, OTHER = None, Pause.USER, Pause.IO_ERROR, Pause.JOB, Pause.OTHER


@pytest.mark.parametrize(
    ("pause", "frozen", "ours", "overlays_planned", "resumed"),
    [
        pytest.param(NOBODYS, True, True, True, False, id="runs"),
        pytest.param(IO, True, False, True, True, id="our overlay was full"),
        pytest.param(IO, False, False, True, False, id="its own disk is full"),
        pytest.param(WISH, True, True, True, True, id="we paused it to end its dump"),
        pytest.param(WISH, True, False, True, False, id="somebody paused it"),
        pytest.param(WISH, False, False, True, False, id="somebody paused it before the overlays"),
        pytest.param(JOB, True, False, True, True, id="its dump died"),
        pytest.param(JOB, False, False, True, True, id="its dump died before the overlays"),
        pytest.param(JOB, False, False, False, False, id="a job, but none of ours"),
        pytest.param(OTHER, True, True, True, False, id="a watchdog, or debugger"),
    ],
)
def test_resumed(
    moment: Moment,
    pause: Pause | None,
    frozen: bool,
    ours: bool,
    overlays_planned: bool,
    resumed: bool,
) -> None:
    if frozen:
        moment.freeze()
    if not overlays_planned:
        moment.work.note(
            disks=tuple(msgspec.structs.replace(disk, overlay="") for disk in moment.disks)
        )
    moment.work.note(
        paused=ours, level=ConsistencyLevel.MEMORY if overlays_planned else ConsistencyLevel.CRASH
    )
    moment.guest.paused_because = pause
    moment.leave()
    assert ("resume" in moment.guest.calls) is resumed
    if resumed:
        # Never before it is on its base: what made it stop may still be so.
        assert moment.guest.calls[-1] == "resume"


@pytest.mark.parametrize(
    ("noted", "active", "allowed_ms"),
    [
        pytest.param(None, True, 30, id="not changed by us"),
        pytest.param(450, True, 450, id="put back"),
        pytest.param(450, False, 30, id="its QEMU is gone"),
    ],
)
def test_allowed_pause(moment: Moment, noted: int | None, active: bool, allowed_ms: int) -> None:
    moment.guest.allowed_ms = 30
    moment.guest.active = active
    moment.work.note(original_downtime_ms=noted)
    moment.leave()
    assert moment.guest.allowed_ms == allowed_ms


def busy_job(guest: FakeGuest) -> None:
    guest.job = True


def busy_copy(guest: FakeGuest) -> None:
    guest.mirrors["vdb"] = "<mirror type='file' job='copy' ready='yes'/>"


BUSY = [
    pytest.param(busy_job, "a job", id="dump, migration, backup"),
    pytest.param(busy_copy, "a block job on vdb", id="block job"),
]


@pytest.mark.parametrize(("make_busy", "says"), BUSY)
def test_others_are_waited_for_until_the_deadline(
    moment: Moment, make_busy: Callable[[FakeGuest], None], says: str
) -> None:
    make_busy(moment.guest)
    with pytest.raises(DomainBusy, match=f"web: {says}.* is under way since more than 0.01 s"):
        jobs.wait_idle(moment.guest, 0.01)
    with pytest.raises(DomainBusy, match=says):
        moment.leave()
    assert moment.guest.calls == []


@pytest.mark.parametrize(("make_busy", "says"), BUSY)
def test_nobody_waits_once_cancelled(
    moment: Moment, make_busy: Callable[[FakeGuest], None], says: str
) -> None:
    make_busy(moment.guest)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(DomainBusy, match=says):
        jobs.wait_idle(moment.guest, 1e9, cancelled)


def test_a_job_that_ends_is_waited_for(moment: Moment, monkeypatch: pytest.MonkeyPatch) -> None:
    moment.guest.job = True

    def ends(_seconds: float) -> None:
        moment.guest.job = False
        moment.freeze()  # as a dump does whose caller was killed

    monkeypatch.setattr(time, "sleep", ends)
    moment.config = msgspec.structs.replace(moment.config, limits=Limits(busy_timeout_s=1e9))
    moment.leave()
    assert moment.on_base() and moment.merged()


def test_our_own_commit_is_not_somebody_elses_job(moment: Moment) -> None:
    moment.freeze()
    moment.guest.block_commit("vda", str(moment.bases["vda"]))
    moment.guest.calls.clear()
    jobs.wait_idle(moment.guest, 0)
    moment.leave()
    assert moment.guest.calls == ["commit vdb", "pivot vda", "pivot vdb"]


@pytest.mark.parametrize("make_busy", [busy_job, busy_copy])
def test_a_guest_that_is_off_is_never_busy(
    moment: Moment, make_busy: Callable[[FakeGuest], None]
) -> None:
    make_busy(moment.guest)
    moment.guest.active = False
    jobs.wait_idle(moment.guest, 0)


def test_a_moment_without_overlays_waits_for_nobody(moment: Moment) -> None:
    moment.work.note(
        level=ConsistencyLevel.CRASH,
        disks=tuple(msgspec.structs.replace(disk, overlay="") for disk in moment.disks),
    )
    moment.guest.job = True
    moment.leave()


def back_by_hand(moment: Moment) -> None:
    """Somebody has pointed the definitions to the bases, and merged nothing."""
    moment.guest.live = {target: str(base) for target, base in moment.bases.items()}
    moment.guest.persistent = dict(moment.guest.live)


def test_unmerged_writes_are_kept(moment: Moment, caplog: pytest.LogCaptureFixture) -> None:
    moment.freeze()
    back_by_hand(moment)
    moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda"), moment.dir.overlay("vdb")]
    assert caplog.text.count("holds writes that we have not merged: kept; see to it") == 2
    assert not moment.merged()


def test_an_overlay_without_writes_goes(moment: Moment) -> None:
    moment.freeze("vda")
    moment.guest.on_overlay("vdb", moment.dir.overlay("vdb"))
    back_by_hand(moment)
    moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda")]


def test_writes_after_a_pivot_that_failed_are_not_taken_for_merged(moment: Moment) -> None:
    moment.freeze("vda")

    def fail() -> None:
        raise LibvirtFailed("no pivot", 38)

    moment.guest.at["pivot vda"] = fail
    with pytest.raises(ZvmsnapError, match="no pivot"):
        moment.leave()
    assert moment.work.entry.committed_overlays == (str(moment.dir.overlay("vda")),)
    moment.guest.mirrors.clear()
    moment.guest.at["commit vda"] = fail
    with pytest.raises(ZvmsnapError, match="still on"):
        moment.leave()
    back_by_hand(moment)
    moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda")]


@pytest.mark.parametrize("where", ["live", "persistent"])
def test_an_overlay_that_is_named_again_is_never_removed(moment: Moment, where: str) -> None:
    moment.freeze("vda")
    tidy = release._tidy

    def used_again(config: Config, guest: FakeGuest, *rest: Any) -> None:
        getattr(guest, where)["vda"] = str(moment.dir.overlay("vda"))
        tidy(config, guest, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "_tidy", used_again)
        with pytest.raises(ZvmsnapError, match=r"vda.zvmsnap.qcow2 is in use again; kept"):
            moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda")]


def test_an_overlay_below_somebody_elses_is_never_removed(moment: Moment, tmp_path: Path) -> None:
    moment.freeze("vda")
    theirs = moment.guest.on_overlay(
        "vda", tmp_path / "tank" / "theirs.qcow2", moment.dir.overlay("vda")
    )
    with pytest.raises(ZvmsnapError, match="which somebody else made: end that snapshot first"):
        moment.leave()
    assert moment.dir.overlays() == [moment.dir.overlay("vda")]
    assert moment.guest.live["vda"] == str(theirs)
    assert moment.guest.calls == []


def test_one_disk_that_cannot_leave_keeps_no_other(moment: Moment) -> None:
    moment.freeze()

    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    moment.guest.at["commit vda"] = fail
    with pytest.raises(ZvmsnapError, match=r"no commit.*vda is still on"):
        moment.leave()
    assert moment.guest.live["vdb"] == str(moment.bases["vdb"])
    moment.leave()
    assert moment.on_base() and moment.merged()
    assert moment.dir.overlays() == []


def test_capture_that_no_journal_knows_goes_with_its_last_overlay(
    moment: Moment, config: Config
) -> None:
    lost = StagingDir(config.staging_dir / f"{UUID}.0000000f")
    lost.make()
    lost.memory.write_bytes(b"RAM")
    write(moment.guest.on_overlay("vda", lost.overlay("vda")), 7)
    moment.work.note(disks=())
    moment.leave()
    assert holds(moment.bases["vda"], 7)
    assert not lost.path.exists()


def test_libvirts_metadata_of_older_scripts_is_forgotten(moment: Moment) -> None:
    (name,) = moment.work.entry.snapshot_names
    moment.guest.snapshots = [name, "somebody elses"]
    moment.leave()
    assert moment.guest.calls == [f"forget {name}"]
    assert moment.guest.snapshots == ["somebody elses"]


def test_everything_is_written_down_before_it_is_done(moment: Moment) -> None:
    moment.freeze("vda")
    seen: list[tuple[str, tuple[str, ...]]] = []

    def look() -> None:
        known = moment.journal.read(UUID)
        assert known
        seen.append((known.step, known.committed_overlays))

    moment.guest.at = {"commit vda": look, "pivot vda": look}
    moment.leave()
    assert seen == [("commit", ()), ("release vda", (str(moment.dir.overlay("vda")),))]
    assert moment.steps() == ["tidy"]


def test_logger_is_the_one_of_the_guest(caplog: pytest.LogCaptureFixture, moment: Moment) -> None:
    caplog.set_level(logging.WARNING)
    moment.freeze("vda")
    moment.guest.paused_because = Pause.IO_ERROR
    moment.leave()
    assert "web (tank/web): stands still because of an I/O error" in caplog.text
