"""A guest that runs is backed up by libvirt's job; what it leaves behind is nothing."""

import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from tests.fakes.backup_scene import Scene
from tests.fakes.images import run_qemu_img, write
from zvmsnap.archive.directory import StoredBackup
from zvmsnap.backup import leftovers
from zvmsnap.backup.of_guest import Wanted, back_up_guest
from zvmsnap.backup.work import BackupWork, Works
from zvmsnap.backup.writing import BackupOptions
from zvmsnap.common.errors import BackupFailed, BackupImpossible, LibvirtFailed
from zvmsnap.common.process import Process


class Job:
    """libvirt's backup job: it copies the disks at once, over when it was asked for twice."""

    def __init__(self, scene: Scene, patch: pytest.MonkeyPatch) -> None:
        self.scene = scene
        self.xml = ""
        self.asked = 0
        self.why = ""
        self.ends = True
        self.calls: list[str] = []
        patch.setattr(scene.host, "begin_backup", self.begin, raising=False)
        patch.setattr(scene.host, "backup_xml", self.about, raising=False)
        patch.setattr(scene.host, "why_backup_failed", lambda _uuid: self.why, raising=False)
        patch.setattr(scene.guest, "has_job", self.is_there)
        patch.setattr(scene.guest, "job_kind", lambda: "backup" if self.xml else "")
        patch.setattr(scene.guest, "abort_job", self.abort)

    def begin(self, _uuid: str, xml: str) -> None:
        self.xml = xml
        for disk in ET.fromstring(xml).findall("disks/disk[@backup='yes']"):
            target = disk.find("target")
            assert target is not None
            path = Path(target.get("file", ""))
            # QEMU's user must pass to it.
            assert stat.S_IMODE(path.parent.stat().st_mode) & 0o001
            run_qemu_img(
                *("convert", "-O", "qcow2", self.scene.guest.live[disk.get("name", "")]), path
            )

    def about(self, _uuid: str) -> str:
        if not self.xml:
            raise LibvirtFailed("no job")
        return self.xml

    def is_there(self) -> bool:
        self.asked += 1
        if self.xml and self.ends and self.asked > 2:
            self.xml = ""
        return bool(self.xml)

    def abort(self) -> None:
        self.calls.append("abort")
        self.xml = ""


@pytest.fixture
def job(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    image = tmp_path / "elsewhere.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    write(image, 7, 128)
    scene.guest.live = scene.guest.persistent = {"vda": str(image)}
    return Job(scene, monkeypatch)


def back_up(scene: Scene, wanted: Wanted = Wanted.BEST) -> StoredBackup | None:
    options = BackupOptions()
    return back_up_guest(scene.config, scene.host, scene.guest, scene.directory, options, wanted)


def test_full_and_increment(scene: Scene, job: Job, tmp_path: Path) -> None:
    first = back_up(scene)
    assert first and (first.manifest.way, first.manifest.consistency) == ("push", "crash")
    write(tmp_path / "elsewhere.qcow2", 8, 512)
    job.asked = 0
    second = back_up(scene)
    assert second and second.manifest.level == "inc"
    for backup, at, byte in ((first, 128, 7), (second, 128, 7), (second, 512, 8)):
        content = scene.content(backup)
        assert content[at << 10 : (at + 64) << 10] == bytes([byte]) * 65536
    assert {path.name for path in second.directory.iterdir()} == {
        *("manifest.json", "vda.qcow2", "domain.xml", "persistent.xml")
    }
    assert stat.S_IMODE(second.directory.stat().st_mode) == 0o700
    assert job.calls == [] and scene.nothing_left()


def test_a_job_that_fails(scene: Scene, job: Job) -> None:
    job.why = "No space left on device"
    with pytest.raises(BackupFailed, match="did not end well: No space left on device"):
        back_up(scene)
    assert scene.nothing_left() and scene.directory.read() == ([], [])


def test_a_guest_that_is_shut_off_meanwhile(scene: Scene, job: Job) -> None:
    begin = job.begin

    def begin_and_crash(uuid: str, xml: str) -> None:
        begin(uuid, xml)
        scene.guest.active = False

    scene.host.begin_backup = begin_and_crash  # type: ignore[method-assign]
    with pytest.raises(BackupFailed, match="was shut off, or has crashed"):
        back_up(scene)
    assert scene.nothing_left()


@pytest.mark.parametrize("wanted", [Wanted.STATE, Wanted.QUIESCED])
def test_what_it_cannot_be(scene: Scene, job: Job, wanted: Wanted) -> None:
    with pytest.raises(BackupImpossible, match="vda is on no ZFS"):
        back_up(scene, wanted)


def test_recover_ends_the_job(scene: Scene, job: Job) -> None:
    making = scene.directory.make("0" * 32)
    work = BackupWork(
        id="0" * 32,
        domain="web",
        uuid=scene.guest.uuid,
        owner=Process.none(),
        making=str(making),
        pushes=True,
    )
    Works(scene.config).write(work)
    job.xml, job.ends = "<target file='/somewhere/else'/>", False
    Works(scene.config).write(msgspec.structs.replace(work, id="1" * 32, making=f"{making}x"))
    for each in leftovers.works(scene.config, scene.host)[0][1:]:
        each.end()
    assert job.calls == []  # that job is somebody else's
    job.xml = f"<target file='{making}/vda.pushed.qcow2'/>"
    (each,) = leftovers.works(scene.config, scene.host)[0]
    each.end()
    assert job.calls == ["abort"] and scene.nothing_left()
