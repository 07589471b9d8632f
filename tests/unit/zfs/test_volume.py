import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import volume


@pytest.mark.parametrize("device", ["/dev/null", "/dev/nonexistent", "/dev/zd-no-such"])
def test_no_volume(device: str) -> None:
    assert volume.volume_of(device) is None


def test_a_device_that_never_comes() -> None:
    assert volume.device_of("tank/My VMs/a") == "/dev/zvol/tank/My+VMs/a"
    with pytest.raises(ZfsFailed, match=r"^/dev/zvol/no/such\+one: did not appear within 30 s"):
        volume.wait_device("no/such one", 30)


def test_the_device_of_another_volume_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = iter(["tank/old", None, "tank/v"])
    monkeypatch.setattr(volume, "volume_of", lambda device: next(volumes))
    volume.wait_device("tank/v", 60)
    assert list(volumes) == []
