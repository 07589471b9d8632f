import threading
from collections.abc import Callable

import pytest

from tests.fakes.guest import FakeGuest
from zvmsnap.common.errors import DomainBusy, DomainLocked
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.disks.staging import StagingDir


def has_job(guest: FakeGuest) -> None:
    guest.job = True


def has_copy(guest: FakeGuest) -> None:
    guest.mirrors["vda"] = "<mirror type='file' job='copy' ready='yes'/>"


def is_locked(guest: FakeGuest) -> None:
    def locked() -> None:
        guest.at["has_job"] = locked
        raise DomainLocked("another call", 68)

    guest.at["has_job"] = locked


BUSY = [
    pytest.param(has_job, "a job", id="dump, migration, backup"),
    pytest.param(has_copy, r"a block job \(copy\) on vda", id="block job"),
    pytest.param(is_locked, "a call that keeps libvirt from answering", id="call"),
]


@pytest.mark.parametrize(("make_busy", "message"), BUSY)
def test_others_are_waited_for_until_the_deadline(
    guest: FakeGuest, make_busy: Callable[[FakeGuest], None], message: str
) -> None:
    make_busy(guest)
    with pytest.raises(DomainBusy, match=f"web: {message}.* is under way since more than 60 s"):
        jobs.wait_idle(guest, 60)


@pytest.mark.parametrize(("make_busy", "message"), BUSY)
def test_nobody_waits_once_cancelled(
    guest: FakeGuest, make_busy: Callable[[FakeGuest], None], message: str
) -> None:
    make_busy(guest)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(DomainBusy, match=message):
        jobs.wait_idle(guest, 1e9, cancelled)


def test_a_job_that_ends_is_waited_for(guest: FakeGuest) -> None:
    has_job(guest)

    def still_runs() -> None:
        guest.at["has_job"] = ends

    def ends() -> None:
        guest.job = False

    guest.at["has_job"] = still_runs
    jobs.wait_idle(guest, 60)
    assert not guest.job


def test_a_commit_of_an_overlay_is_not_somebody_elses_job(guest: FakeGuest, config: Config) -> None:
    base = guest.live["vda"]
    guest.on_overlay("vda", StagingDir.fresh(config.staging_dir, guest.uuid).overlay("vda"))
    guest.block_commit("vda", base)
    jobs.wait_idle(guest, 0)


@pytest.mark.parametrize(("make_busy", "message"), BUSY)
def test_a_guest_that_is_off_is_never_busy(
    guest: FakeGuest, make_busy: Callable[[FakeGuest], None], message: str
) -> None:
    make_busy(guest)
    guest.active = False
    jobs.wait_idle(guest, 0)
