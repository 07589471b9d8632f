from types import SimpleNamespace
from typing import Any

import pytest

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
