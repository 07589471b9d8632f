import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import volume, zfs


@pytest.mark.parametrize("device", ["/dev/null", "/dev/nonexistent", "/dev/zd-no-such"])
def test_no_volume(device: str) -> None:
    assert volume.volume_of(device) is None


@pytest.fixture(autouse=True)
def volmode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs, "properties", lambda name, names: dict.fromkeys(names, "default"))


def test_a_device_that_never_comes() -> None:
    assert volume.device_of("tank/My VMs/a") == "/dev/zvol/tank/My+VMs/a"
    with pytest.raises(ZfsFailed, match=r"^/dev/zvol/no/such\+one: did not appear within 30 s"):
        volume.wait_device("no/such one", 30)


def test_the_device_of_another_volume_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = iter(["tank/old", None, "tank/v"])
    monkeypatch.setattr(volume, "volume_of", lambda device: next(volumes))
    volume.wait_device("tank/v", 60)
    assert list(volumes) == []


@pytest.mark.parametrize(
    ("volmode", "parameters", "says"),
    [
        ("none", {}, "tank/v has volmode=none: zfs set volmode=dev"),
        ("default", {"zvol_volmode": "3"}, "zvol_volmode is 3"),
        ("dev", {"zvol_inhibit_dev": "1"}, "zvol_inhibit_dev is 1"),
    ],
)
def test_a_device_that_zfs_does_not_make_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    clock: TestClock,
    volmode: str,
    parameters: dict[str, str],
    says: str,
) -> None:
    monkeypatch.setattr(zfs, "properties", lambda name, names: {"volmode": volmode})
    monkeypatch.setattr(volume, "_parameter", lambda name: parameters.get(name, "0"))
    begun_s = clock.now_s()
    with pytest.raises(ZfsFailed, match=f"^/dev/zvol/tank/v: does not appear: .*{says}"):
        volume.wait_device("tank/v", 30)
    assert clock.now_s() - begun_s < 3
