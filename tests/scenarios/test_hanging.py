"""One guest hangs, or does what nobody foresaw: the others are served, and it is served later."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.capture_scene import MEMORY, OWNER, RUN, Scene
from tests.fakes.guest import DumpedGuest
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common import waiting
from zvmsnap.common.errors import ConnectionLost, NoAnswer
from zvmsnap.common.process import HangWatch
from zvmsnap.disks import location
from zvmsnap.finalize import after_snapshot, publish
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.recovery import recover
from zvmsnap.recovery.report import Result
from zvmsnap.virt.guest import Pause

NAMES = ("web", "db", "mail")


class Kernel:
    """In which threads hang, as if in a file of a suspended pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hanging: set[str] = set()
        self.resumed = threading.Event()
        monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.01)
        monkeypatch.setattr(HangWatch, "hangs", lambda watch: watch._task.name in self.hanging)

    def hang(self, *_arguments: object) -> None:
        self.hanging.add(str(threading.get_native_id()))
        self.resumed.wait(60)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.resumed.set()


@pytest.fixture
def three(scene: Scene, pools: FakeZfs) -> list[DumpedGuest]:
    guests = [
        scene.add(name, f"c0ffee00-0000-4000-8000-00000000000{number}")
        for number, name in enumerate(NAMES)
    ]
    scene.when["web snapshot"] = lambda: None
    return guests


def snapshot(pools: FakeZfs) -> None:
    """sanoid takes it."""
    pools.present = {f"tank/{name}@{RUN}_hourly": number for number, name in enumerate(NAMES, 11)}


def post(scene: Scene) -> bool:
    call = HookCall(Role.POST, tuple(scene.modes), (f"{RUN}_hourly",))
    return after_snapshot.finish_run(call, scene.config, OWNER)


def levels(scene: Scene) -> dict[str, str]:
    return {
        point.manifest.domain: point.manifest.level
        for point in vault.entries(scene.config.vault_dir)
        if isinstance(point, RestorePoint)
    }


def unforeseen() -> None:
    raise KeyError("vda")


def silent() -> None:
    raise NoAnswer("web: no answer: given up after 60 s")


FAULTS = [
    pytest.param(unforeseen, "KeyError at test_hanging.py:", id="unforeseen"),
    pytest.param(silent, "no answer: given up", id="QEMU hangs"),
]


@pytest.mark.parametrize(("fault", "says"), FAULTS)
def test_one_guest_in_post(
    scene: Scene,
    three: list[DumpedGuest],
    pools: FakeZfs,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[], None],
    says: str,
) -> None:
    assert scene.pre()
    snapshot(pools)
    three[0].at["is_active"] = fault
    assert not post(scene)
    assert levels(scene) == {"db": "memory", "mail": "memory"}
    assert says in caplog.text
    assert "Traceback" not in "".join(record.getMessage() for record in caplog.records)
    assert recover.recover_entries(scene.config, scene.entries())
    assert levels(scene) == dict.fromkeys(NAMES, "memory")
    scene.assert_at_rest()


@pytest.mark.parametrize(("fault", "says"), FAULTS)
def test_one_guest_in_recover(
    scene: Scene,
    three: list[DumpedGuest],
    pools: FakeZfs,
    fault: Callable[[], None],
    says: str,
) -> None:
    assert scene.pre()
    snapshot(pools)
    three[0].at["is_active"] = fault
    report = recover.recover_guests(scene.config)
    results = {outcome.domain: outcome.result for outcome in report.outcomes}
    assert results == {"web": Result.FAILED, "db": Result.RECOVERED, "mail": Result.RECOVERED}
    (failed,) = [outcome for outcome in report.outcomes if outcome.result is Result.FAILED]
    assert says in failed.why
    assert recover.recover_guests(scene.config).complete
    assert levels(scene) == dict.fromkeys(NAMES, "memory")


@pytest.mark.parametrize(("fault", "says"), FAULTS)
def test_one_guest_in_pre(
    scene: Scene,
    three: list[DumpedGuest],
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[], None],
    says: str,
) -> None:
    three[0].at["snapshot"] = fault
    assert not scene.pre()
    assert says in caplog.text
    assert [entry.domain for entry in scene.entries() if entry.level is MEMORY] == ["db", "mail"]


def test_qemu_that_hangs_before_its_run_has_a_point_without_ram(
    scene: Scene,
    three: list[DumpedGuest],
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What libvirt knows by itself is enough for it."""
    monkeypatch.setattr(three[0], "check_answers", silent)
    assert not scene.pre()
    snapshot(pools)
    assert post(scene)
    assert levels(scene) == {"web": "crash", "db": "memory", "mail": "memory"}


def test_disk_on_a_suspended_pool(
    scene: Scene,
    three: list[DumpedGuest],
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    locate = location.locate_disks

    def hang(host: object, guest: DumpedGuest, table: object) -> location.GuestDisks:
        if guest is three[0]:
            kernel.hang()
        return locate(host, guest, table)  # type: ignore[arg-type]

    monkeypatch.setattr(location, "locate_disks", hang)
    assert not scene.pre()
    assert "web (tank/web,tank/db,tank/mail): not looked at: hangs in the kernel" in caplog.text
    assert [entry.domain for entry in scene.entries()] == ["db", "mail"]


def test_guest_whose_capture_hangs_in_the_kernel(
    scene: Scene, three: list[DumpedGuest], kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds the only place of a dump, and all wait for it at the freeze barrier."""
    scene.modes["tank/db"][""] = "quiesced"
    three[0].at["snapshot"] = kernel.hang
    assert not scene.pre()
    assert "web (tank/web,tank/db,tank/mail): no point: hangs in the kernel" in caplog.text
    levels = {entry.domain: entry.level for entry in scene.entries() if entry.disks_frozen_at_s}
    assert levels == {"db": "quiesced", "mail": "memory"}


def test_vault_on_a_suspended_pool(
    scene: Scene,
    three: list[DumpedGuest],
    pools: FakeZfs,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every guest is back on its disks; the first point that hangs is enough to know."""
    assert scene.pre()
    snapshot(pools)
    hung: list[int] = []

    def hang(*_arguments: object) -> None:
        hung.append(1)
        kernel.hang()

    monkeypatch.setattr(after_snapshot, "publish", hang)
    assert not post(scene)
    assert hung == [1]
    assert "hangs in the kernel: given up after 45 s; is a pool suspended?" in caplog.text
    for guest in three:
        assert guest.live["vda"].endswith("vda.raw")
    monkeypatch.setattr(after_snapshot, "publish", publish.publish)
    kernel.resumed.set()


def test_lost_connection_costs_one_guest_its_dump_and_lets_it_go(
    scene: Scene,
    three: list[DumpedGuest],
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aborted: list[str] = []

    def lose() -> None:
        three[0].job = True
        three[0].paused_because = Pause.JOB
        raise ConnectionLost("web: memory snapshot: the connection to libvirt was lost")

    def abort() -> None:
        aborted.append("web")
        three[0].job = False
        three[0].paused_because = None

    three[0].at["snapshot"] = lose
    monkeypatch.setattr(three[0], "abort_job", abort)
    assert not scene.pre()
    assert aborted == ["web"]
    snapshot(pools)
    assert post(scene)
    assert levels(scene) == {"web": "crash", "db": "memory", "mail": "memory"}
    assert three[0].paused_because is None


def test_dumps_are_limited_by_the_configuration_or_by_the_host(
    scene: Scene, three: list[DumpedGuest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def dump() -> None:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for guest in three:
        guest.at["snapshot"] = dump
    assert scene.pre()
    assert max(most) == 1
