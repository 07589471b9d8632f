import os
from pathlib import Path

import pytest

from zvmsnap.disks import changes, location
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation

FRESH_BYTES = 8192
TAKEN_S = 1_700_000_000


@pytest.mark.parametrize(
    ("written_s", "volume_bytes", "expected"),
    [
        pytest.param(TAKEN_S - 3600, FRESH_BYTES, [], id="as they were"),
        pytest.param(TAKEN_S + 0.9, FRESH_BYTES, [], id="in the second of the snapshot"),
        pytest.param(TAKEN_S + 60, FRESH_BYTES, ["vda"], id="file"),
        pytest.param(TAKEN_S - 3600, FRESH_BYTES + 512, ["vdb"], id="volume"),
        pytest.param(TAKEN_S + 60, FRESH_BYTES + 512, ["vda", "vdb"], id="both"),
    ],
)
def test_written_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written_s: float,
    volume_bytes: int,
    expected: list[str],
) -> None:
    disk = tmp_path / "a.raw"
    disk.touch()
    os.utime(disk, (written_s, written_s))
    asked = []

    def written_bytes(dataset: str, snapshot: str = "") -> int:
        asked.append((dataset, snapshot))
        return volume_bytes

    def created_s(snapshot: str) -> int:
        assert snapshot == "tank/web@m_hourly"
        return TAKEN_S

    monkeypatch.setattr(zfs, "written_bytes", written_bytes)
    monkeypatch.setattr(zfs, "created_s", created_s)
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(location, "path_of", lambda _place, _table: str(disk))
    places = {"vda": DiskLocation("tank/web", "a.raw"), "vdb": DiskLocation("tank/web/data", "")}
    snapshots = ["tank/web@m_hourly", "tank/web/data@m_hourly"]
    found = changes.written_to(places, snapshots, {"tank/web/data": FRESH_BYTES})
    assert found == expected
    assert asked == [("tank/web/data", "m_hourly")]
