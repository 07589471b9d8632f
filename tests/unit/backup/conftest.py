from pathlib import Path

import pytest

from tests.fakes.backup_job import FakeBackupJob
from tests.fakes.backup_scene import Scene
from tests.fakes.backup_scene import scene as scene
from tests.fakes.images import run_qemu_img, write


@pytest.fixture
def image(scene: Scene, tmp_path: Path) -> Path:
    """The only disk of the guest, on no ZFS."""
    path = tmp_path / "elsewhere.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    write(path, 7, 128)
    scene.guest.live = scene.guest.persistent = {"vda": str(path)}
    return path


@pytest.fixture
def job(scene: Scene, image: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBackupJob:
    """What libvirt does for it."""
    return FakeBackupJob(scene, monkeypatch)
