"""A libguestfs that is not there, and a volume's point."""

import os
import sys
from collections.abc import Callable

import pytest

from tests.fakes.guestfs_module import FakeMachine
from tests.fakes.restore_scene import Scene
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.disks import qemu_img
from zvmsnap.files import ending
from zvmsnap.files.record import View


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """In place of libguestfs, and of what it mounts."""
    machine = FakeMachine()
    monkeypatch.setitem(sys.modules, "guestfs", machine.library())
    monkeypatch.setattr(ending, "is_mounted", machine.is_mounted)
    monkeypatch.setattr(ending, "unmount", machine.unmount)
    return machine


@pytest.fixture
def volume_scene(host_with_points: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A host with a guest on a volume; qemu-img opens whatever it is told to."""
    monkeypatch.setattr(qemu_img, "make_view", lambda path, below: None)
    monkeypatch.setattr(qemu_img, "disk_bytes", lambda path: 1 << 20)
    scene = host_with_points("volume")
    scene.host.install(monkeypatch)
    return scene


@pytest.fixture
def view(config: Config) -> View:
    """A view of the snapshot x of tank/web."""
    work = config.staging_dir / "views" / "0123abcd"
    return View(
        name="0123abcd",
        domain="web",
        uuid="c0ffee00-0000-4000-8000-000000000001",
        point="web@x",
        directory="/vault/web/x",
        mountpoint=str(work / "files"),
        work=str(work),
        owner=Process.of(os.getpid()),
    )
