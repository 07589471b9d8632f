"""libvirt's backup job: whose it is, and whether it ends."""

from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from zvmsnap.common.errors import BackupFailed, LibvirtFailed, NoAnswer
from zvmsnap.disks import backup_job
from zvmsnap.virt.guest_state import BlockJob

FOLDER = "/backup/.making-1"


class Job:
    """A job that writes into FOLDER; `on_abort` says what comes of ending it."""

    def __init__(self, guest: FakeGuest, host: FakeHost, patch: pytest.MonkeyPatch) -> None:
        self.is_there = True
        self.on_abort = "ends"
        self.error: LibvirtFailed | None = None
        self.aborts = 0
        patch.setattr(host, "backup_xml", self.about, raising=False)
        patch.setattr(host, "why_backup_failed", lambda _uuid: "no room", raising=False)
        patch.setattr(guest, "abort_job", self.abort)
        self.begins_after = 0
        patch.setattr(guest, "job_kind", lambda: "backup" if self.is_there else "")

    def about(self, _uuid: str) -> str:
        if self.error:
            raise self.error
        self.begins_after -= 1
        if not self.is_there or self.begins_after >= 0:
            raise LibvirtFailed("no job", 101)
        return f"<target file='{FOLDER}/vda.pushed.qcow2'/>"

    def abort(self) -> None:
        self.aborts += 1
        self.is_there = self.on_abort in ("goes on", "refuses")
        if self.on_abort != "ends" and self.on_abort != "goes on":
            raise LibvirtFailed("no job is active", 55)


@pytest.fixture
def guest(tmp_path: Path) -> FakeGuest:
    return FakeGuest(vda=tmp_path / "vda", vdb=tmp_path / "vdb")


@pytest.fixture
def host(guest: FakeGuest) -> FakeHost:
    return FakeHost(guest)


@pytest.fixture
def job(guest: FakeGuest, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(guest, host, monkeypatch)


def test_it_is_ended(guest: FakeGuest, host: FakeHost, job: Job) -> None:
    backup_job.end(host, guest, FOLDER)
    backup_job.end(host, guest, FOLDER)
    assert job.aborts == 1


def test_one_that_is_about_to_begin_is_waited_for(
    guest: FakeGuest, host: FakeHost, job: Job
) -> None:
    job.begins_after = 5
    backup_job.end(host, guest, FOLDER)
    assert job.aborts == 1
    job.is_there, job.begins_after = True, 1_000_000
    with pytest.raises(LibvirtFailed, match="does not begin"):
        backup_job.end(host, guest, FOLDER)


def test_that_of_others_goes_on(guest: FakeGuest, host: FakeHost, job: Job) -> None:
    backup_job.end(host, guest, "/backup/.making-10")
    backup_job.end(host, guest, "/backup/.making-")
    assert job.aborts == 0


def test_it_ends_by_itself_meanwhile(guest: FakeGuest, host: FakeHost, job: Job) -> None:
    job.on_abort = "has ended"
    backup_job.end(host, guest, FOLDER)


@pytest.mark.parametrize(
    ("on_abort", "why"), [("refuses", "no job is active"), ("goes on", "does not end")]
)
def test_it_does_not_end(
    guest: FakeGuest, host: FakeHost, job: Job, on_abort: str, why: str
) -> None:
    job.on_abort = on_abort
    with pytest.raises(LibvirtFailed, match=why):
        backup_job.end(host, guest, FOLDER)


def test_nothing_is_known(guest: FakeGuest, host: FakeHost, job: Job) -> None:
    job.error = NoAnswer("no answer")
    with pytest.raises(NoAnswer):
        backup_job.end(host, guest, FOLDER)
    with pytest.raises(NoAnswer):
        backup_job.await_end(host, guest)


def test_of_a_guest_that_is_off_nothing_is_asked(
    guest: FakeGuest, host: FakeHost, job: Job
) -> None:
    guest.active = False
    job.error = NoAnswer("no answer")
    backup_job.end(host, guest, FOLDER)
    with pytest.raises(BackupFailed, match="was shut off"):
        backup_job.await_end(host, guest)


def test_it_fails(guest: FakeGuest, host: FakeHost, job: Job) -> None:
    job.is_there = False
    with pytest.raises(BackupFailed, match="did not end well: no room"):
        backup_job.await_end(host, guest)


def test_how_far(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"vda": BlockJob("", 3, 4), "vdb": BlockJob("", 0, 0)}
    monkeypatch.setattr(guest, "block_job", known.get)
    assert backup_job.how_far(guest, known) == "web: pushed: vda 75 %, vdb 0 %"
    assert backup_job.how_far(guest, ["vdc"]) == "web: pushed: all"
