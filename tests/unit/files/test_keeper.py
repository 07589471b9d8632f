"""A view from its plan to its end, on a host without libguestfs and ZFS."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guestfs_module import FakeMachine
from tests.fakes.restore_scene import DATASET, NAME, Scene
from zvmsnap.common.errors import FilesImpossible, ZfsFailed
from zvmsnap.common.process import Process
from zvmsnap.files import appliance, ending, images, keeper, plan
from zvmsnap.files.keeper import Opened
from zvmsnap.files.record import View, Views
from zvmsnap.recovery.recover import recover_guests
from zvmsnap.recovery.report import Result

CLONE = "tank/zvmsnap-temporary-{}-0"


@contextmanager
def kept(scene: Scene, view: View) -> Iterator[Opened]:
    """Hold the view in a thread, while it is open; what goes wrong before is raised here."""
    closing, told = threading.Event(), threading.Event()
    opened: list[Opened] = []
    failures: list[BaseException] = []

    def tell(answer: Opened) -> None:
        opened.append(answer)
        told.set()

    def keep() -> None:
        try:
            keeper.keep(scene.config, view, closing, tell)
        except BaseException as error:
            failures.append(error)
        told.set()

    thread = threading.Thread(target=keep)
    thread.start()
    assert told.wait(20)
    try:
        if opened:
            yield opened[0]
    finally:
        closing.set()
        thread.join(20)
        if failures:
            raise failures[0]


def assert_nothing_left(scene: Scene, machine: FakeMachine) -> None:
    assert list(scene.world.pool) == ["tank", DATASET]
    assert Views(scene.config.journal_dir).all() == ([], []) and not machine.here
    assert not (scene.config.staging_dir / "views").exists()


def test_a_volume_is_seen_through_a_clone_that_goes_again(
    volume_scene: Scene, machine: FakeMachine
) -> None:
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    clone = CLONE.format(view.name)
    with kept(volume_scene, view) as opened:
        assert opened == Opened("", ("/vda",), (), 1 << 20)
        assert machine.work == view.work
        assert machine.here == {view.mountpoint} == {f"{view.work}/files"}
        assert volume_scene.world.pool[clone].properties == {
            "readonly": "on",
            "volmode": "dev",
            "snapdev": "hidden",
            "zvmsnap:mode": "off",
            "zvmsnap:temporary": view.name,
        }
        assert machine.drives == [(f"{view.work}/vda.qcow2", "qcow2", True)]
        now = Views(volume_scene.config.journal_dir).read(view.name)
        assert now == msgspec.structs.replace(view, datasets=(clone,))
    assert machine.acts[-3:] == ["unmount", "shutdown", "close"]
    assert_nothing_left(volume_scene, machine)


def test_a_kvm_that_does_not_work(
    volume_scene: Scene, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.has_kvm = False
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    monkeypatch.setattr(appliance, "_KVM", tmp_path / "none")
    with pytest.raises(FilesImpossible, match="starting libguestfs: "), kept(volume_scene, view):
        pass
    assert machine.acts == ["launch", "shutdown", "close"]
    monkeypatch.setattr(appliance, "_KVM", tmp_path)
    with kept(volume_scene, view):
        assert machine.acts[3:] == ["launch", "shutdown", "close", "launch", "mkmountpoint /vda"]
    assert_nothing_left(volume_scene, machine)


def test_who_interrupts_does_not_wait_for_libguestfs(
    volume_scene: Scene, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine may never answer: it is killed, and not started again."""
    closing = threading.Event()
    killed = threading.Event()

    def launch() -> None:
        machine.acts.append("launch")
        closing.set()
        assert killed.wait(20)
        raise RuntimeError("appliance closed the connection unexpectedly")

    monkeypatch.setattr(machine, "launch", launch)
    monkeypatch.setattr(ending, "_end_machine", lambda _view: killed.set())
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    with pytest.raises(FilesImpossible, match="closed the connection"):
        keeper.keep(volume_scene.config, view, closing, lambda _: None)
    assert machine.acts == ["launch", "shutdown", "close"]
    assert_nothing_left(volume_scene, machine)


def test_file_systems_that_cannot_be_mounted_are_told(
    volume_scene: Scene, machine: FakeMachine
) -> None:
    machine.file_systems = {"/dev/sda1": "ext4", "/dev/sda2": "zfs_member"}
    machine.broken = {"/dev/sda2"}
    view = plan.plan_view(volume_scene.config, volume_scene.point(), by_device=True)
    with kept(volume_scene, view) as opened:
        assert machine.inside == {"/vda1": "/dev/sda1"}
        (line,) = opened.left_out
        assert line.startswith("/dev/sda2 is not mounted at /vda2: ") and "\x1b" not in line


@pytest.mark.parametrize("why", ["launch", "no file system", "no root", "clone", "killed"])
def test_nothing_is_left_of_a_view_that_fails(
    why: str, volume_scene: Scene, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    expected: type[Exception] = FilesImpossible
    if why == "launch":
        machine.starts = False
    elif why == "no file system":
        machine.file_systems = {"/dev/sda": "crypto_LUKS"}
    elif why == "no root":
        machine.systems = {"/dev/sda": ("linux", {"/": "/dev/sda", "/boot": "/dev/sdb"}, {})}
        machine.broken = {"/dev/sda"}
    elif why == "clone":
        volume_scene.world.errors = {(len(volume_scene.world.acts), "after")}
        expected = ZfsFailed
    else:
        monkeypatch.setattr(images, "make", lambda *_: 1 / 0)
        expected = ZeroDivisionError
    with pytest.raises(expected), kept(volume_scene, view):
        pass
    assert_nothing_left(volume_scene, machine)


def test_without_libguestfs_the_package_is_named(
    volume_scene: Scene, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "guestfs", None)
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    with (
        pytest.raises(FilesImpossible, match="apt install python3-guestfs"),
        kept(volume_scene, view),
    ):
        pass


def test_recover_ends_what_a_killed_process_leaves(
    volume_scene: Scene, machine: FakeMachine
) -> None:
    config = volume_scene.config
    view = plan.plan_view(config, volume_scene.point())
    clone = CLONE.format(view.name)
    dead = msgspec.structs.replace(view, owner=Process.none(), datasets=(clone,))
    Views(config.journal_dir).write(dead)
    mark = {"zvmsnap:temporary": view.name}
    volume_scene.world.clone(f"{DATASET}@{NAME}", clone, mark)
    Path(view.work).mkdir(parents=True)
    machine.here.add(view.mountpoint)

    report = recover_guests(config, dry_run=True)
    assert [outcome.result for outcome in report.outcomes] == [Result.NEEDED]
    report = recover_guests(config, "web")
    (outcome,) = report.outcomes
    assert (outcome.result, outcome.domain) == (Result.RECOVERED, "web")
    assert outcome.findings == (f"the view of {view.point} has lost its process",)
    assert_nothing_left(volume_scene, machine)


def test_only_what_bears_its_mark_is_destroyed(volume_scene: Scene, machine: FakeMachine) -> None:
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    volume_scene.world.add(CLONE.format(view.name), "somebody's", "volume")
    with pytest.raises(ZfsFailed), kept(volume_scene, view):
        pass
    assert volume_scene.world.pool[CLONE.format(view.name)].content == "somebody's"


def test_a_view_that_lives_is_left_alone(volume_scene: Scene, machine: FakeMachine) -> None:
    view = plan.plan_view(volume_scene.config, volume_scene.point())
    with kept(volume_scene, view):
        assert ending.tidy(volume_scene.config) == []
        assert recover_guests(volume_scene.config).outcomes == []
        assert machine.here == {view.mountpoint}
