from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML, Disk, Manifest
from zvmsnap.points.next_start import next_start
from zvmsnap.points.point import RestorePoint

VDA = Disk("vda", "file", "qcow2", "/srv/vm/a.raw", "tank/web", "a.raw")
VDB = Disk("vdb", "block", "qcow2", "/dev/zd16", "tank/data", "")
LIVE = {"vda": "/srv/vm/a.raw", "vdb": "/dev/zd16"}


@pytest.fixture
def point(tmp_path: Path, manifest: Callable[..., Manifest]) -> RestorePoint:
    (tmp_path / DOMAIN_XML).write_text(FakeGuest().xml_of(LIVE))
    return RestorePoint(tmp_path, manifest(disks=(VDA, VDB)))


@pytest.mark.parametrize(
    ("disk", "place"),
    [
        pytest.param(("vda", "/srv/vm/a.raw"), ("tank/web", "a.raw"), id="the same"),
        pytest.param(("sda", "/srv/vm/a.raw"), ("tank/web", "a.raw"), id="another target"),
        pytest.param(("vda", "/srv/vm/b.raw"), ("tank/web", "b.raw"), id="another image"),
        pytest.param(("vdc", "/srv/vm/x/c.raw"), ("tank/web", "x/c.raw"), id="attached"),
        pytest.param(("vdc", "/srv/vm/./c.raw"), ("tank/web", "c.raw"), id="spelling"),
        pytest.param(("vdb", "/dev/zd16"), ("tank/data", ""), id="numbered device"),
        pytest.param(("vdb", "/dev/zvol/tank/data"), ("tank/data", ""), id="volume"),
        pytest.param(("vdc", "/srv/c.raw"), None, id="above"),
        pytest.param(("vdc", "/srv/vm/../c.raw"), None, id="out of it"),
        pytest.param(("vdc", "/dev/zvol/tank/other"), None, id="another volume"),
        pytest.param(("vdc", ""), None, id="no path"),
    ],
)
def test_place(point: RestorePoint, disk: tuple[str, str], place: tuple[str, str] | None) -> None:
    (point.directory / PERSISTENT_XML).write_text(FakeGuest().xml_of(dict([disk])))
    found = next_start(point)
    assert [(each.dataset, each.path) for each in found.disks] == ([place] if place else [])
    assert [each.target for each in found.disks] == ([disk[0]] if place else [])
    assert [each.target for each in found.outside] == ([] if place else [disk[0]])
    assert not found.is_like(point.manifest)


def test_the_same_disks(point: RestorePoint) -> None:
    assert next_start(point).is_like(point.manifest)
    (point.directory / PERSISTENT_XML).write_text(
        FakeGuest().xml_of({"vdb": "/dev/zvol/tank/data", "vda": "/srv/vm/a.raw"})
    )
    assert next_start(point).is_like(point.manifest)
