from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from tests.fakes.libvirt_module import Failure
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.virt.guest import Guest


def guest(**calls: Any) -> Guest:
    domain: Any = SimpleNamespace(**calls)
    return Guest(domain, "web", "u")


def test_allowed_pause_of_a_guest_that_has_just_ended() -> None:
    """libvirt's binding answers None then, and raises nothing."""
    assert guest(migrateGetMaxDowntime=lambda _flags: 300).migrate_max_downtime_ms() == 300
    assert guest(migrateGetMaxSpeed=lambda _flags: 100).migrate_max_speed_mib() == 100
    with pytest.raises(LibvirtFailed, match="web: libvirt does not say what it allows"):
        guest(migrateGetMaxDowntime=lambda _flags: None).migrate_max_downtime_ms()
    with pytest.raises(LibvirtFailed, match="web: libvirt does not say what it allows"):
        guest(migrateGetMaxSpeed=lambda _flags: None).migrate_max_speed_mib()


def fails_with(message: str, code: int) -> Guest:
    def fail(*_flags: int) -> None:
        raise Failure(message, code)

    return guest(jobInfo=fail, jobStats=fail)


def test_a_job_of_which_libvirt_has_no_data_is_a_backup() -> None:
    """As libvirt 11.3 says while a backup begins: one that is taken for none goes on for ever."""
    web = fails_with("backup job data missing", libvirt.VIR_ERR_INTERNAL_ERROR)
    assert web.has_job() and web.job_kind() == "backup" and not web.is_dumped()


def test_another_error_tells_nothing_of_the_job() -> None:
    web = fails_with("argument unsupported", libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)
    for ask in (web.has_job, web.job_kind, web.is_dumped):
        with pytest.raises(LibvirtFailed, match="web: asking for its job"):
            ask()
