import os
from pathlib import Path

import pytest

from zvmsnap.disks import changes, location
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation

FRESH_BYTES = 8192
CREATED_S = 1_700_000_000


@pytest.mark.parametrize(
    ("modified_s", "volume_bytes", "expected"),
    [
        pytest.param(CREATED_S - 3600, FRESH_BYTES, [], id="unchanged"),
        pytest.param(CREATED_S + 0.9, FRESH_BYTES, [], id="in the second of the snapshot"),
        pytest.param(CREATED_S + 60, FRESH_BYTES, ["vda"], id="file"),
        pytest.param(CREATED_S - 3600, FRESH_BYTES + 512, ["vdb"], id="volume"),
        pytest.param(CREATED_S + 60, FRESH_BYTES + 512, ["vda", "vdb"], id="both"),
    ],
)
def test_written_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modified_s: float,
    volume_bytes: int,
    expected: list[str],
) -> None:
    disk = tmp_path / "a.raw"
    disk.touch()
    os.utime(disk, (modified_s, modified_s))
    asked = []

    def written_bytes(dataset: str, snapshot: str = "") -> int:
        asked.append((dataset, snapshot))
        return volume_bytes

    def created_s(snapshot: str) -> int:
        assert snapshot == "tank/web@m_hourly"
        return CREATED_S

    monkeypatch.setattr(zfs, "written_bytes", written_bytes)
    monkeypatch.setattr(zfs, "created_s", created_s)
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(location, "current_path", lambda _location, _table: str(disk))
    locations = {"vda": DiskLocation("tank/web", "a.raw"), "vdb": DiskLocation("tank/web/data", "")}
    snapshots = ["tank/web@m_hourly", "tank/web/data@m_hourly"]
    written = changes.written_to(locations, snapshots, {"tank/web/data": FRESH_BYTES})
    assert written == expected
    assert asked == [("tank/web/data", "m_hourly")]
