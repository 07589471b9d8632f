"""A send that is under way is found before anything stops: it may take days."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.fakes.restore_case import put_back
from tests.fakes.restore_scene import DATASET, NAME, Scene
from zvmsnap.common.errors import Cancelled, RestoreFailed, RestoreImpossible
from zvmsnap.common.process import Process
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore import plan, running_sends
from zvmsnap.restore.plan import RestoreOptions, RestorePlan, RestoreRequest, plan_restore
from zvmsnap.zfs.sends import Sender

ROLLBACK = RestoreOptions(rollback=True)


@pytest.fixture
def scene(host_with_points: Callable[..., Scene]) -> Scene:
    return host_with_points()


def plan_of(scene: Scene, point: RestorePoint, options: RestoreOptions) -> RestorePlan:
    return plan_restore(scene.config, scene.host, RestoreRequest(point, options, None))


def sender(command: str, pid: int = 4711) -> Sender:
    return Sender(Process(pid, 1, "a-boot"), command, " -I " in command)


@pytest.mark.parametrize(
    ("held", "command", "options", "in_the_way"),
    [
        (f"{DATASET}@{NAME}", f"zfs send {DATASET}@{NAME}", RestoreOptions(), True),
        (f"{DATASET}@{NAME}", "", RestoreOptions(), True),
        # Between two snapshots, none is held.
        ("", f"zfs send -I a {DATASET}@later", RestoreOptions(), True),
        # It stays with the replaced disks, and with its dataset.
        (f"{DATASET}@later", f"zfs send {DATASET}@later", RestoreOptions(), False),
        (f"{DATASET}@later", f"zfs send {DATASET}@later", ROLLBACK, True),
        (f"{DATASET}@{NAME}", f"zfs send {DATASET}@{NAME}", ROLLBACK, False),
        ("tank/db@x", "zfs send tank/db@x", RestoreOptions(), False),
        ("", "", RestoreOptions(), False),
    ],
)
def test_refused_with_nothing_touched(
    scene: Scene, held: str, command: str, options: RestoreOptions, in_the_way: bool
) -> None:
    point = scene.point(memory=False)
    scene.world.snap(f"{DATASET}@later")
    scene.world.sent = {held} - {""}
    scene.world.sending = [sender(command)] if command else []
    assert bool(plan_of(scene, point, options).sends) is in_the_way
    if not in_the_way:
        put_back(scene, point, options)
        return
    with pytest.raises(RestoreImpossible) as caught:
        put_back(scene, point, options)
    by = f"pid 4711 ({command})" if command else "a process that is no `zfs send` of this host"
    assert f"being sent by {by}" in str(caught.value)
    assert "--wait waits until that is over, --end-sends ends it" in str(caught.value)
    assert (scene.world.acts, scene.operations(), scene.guest.calls) == ([], [], [])


class Later(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(hours=1)


def test_snapshots_that_are_moved_back_from_an_earlier_restore(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = scene.point(memory=False)
    put_back(scene, point)
    monkeypatch.setattr(plan, "datetime", Later)
    safety = f"{DATASET}.before-"
    (aside,) = (name for name in scene.world.pool if name.startswith(safety))
    (made,) = (s for s in scene.world.all_snapshots().snapshots if s.dataset == aside)
    operation = plan_of(scene, point, RestoreOptions()).operation
    for held, in_the_way in ((made.full_name, False), (f"{DATASET}@{NAME}", True)):
        scene.world.sent = {held}
        assert bool(running_sends.find_now(operation)) is in_the_way


def test_one_that_begins_while_the_image_is_unpacked_stops_no_guest(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = scene.point(memory=False)
    clone = scene.world.clone

    def and_a_send_begins(*arguments: object) -> None:
        clone(*arguments)  # type: ignore[arg-type]
        scene.world.sent = {f"{DATASET}@{NAME}"}

    monkeypatch.setattr("zvmsnap.zfs.zfs.clone", and_a_send_begins)
    with pytest.raises(RestoreFailed, match=r"is being sent by .* web is running"):
        put_back(scene, point)
    assert scene.guest.calls == []
    assert not any(".zvmsnap-" in name for name in scene.world.pool)


def test_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = plan_of(scene, scene.point(memory=False), RestoreOptions()).operation
    scene.world.sent = {f"{DATASET}@{NAME}"}
    waits: list[float] = []

    def wait(event: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 1000:
            scene.world.sent = set()
        return event.is_set()

    monkeypatch.setattr(running_sends, "wait", wait)
    running_sends.wait_for_end(operation, threading.Event())
    assert len(waits) == 1000
    scene.world.sent = {f"{DATASET}@{NAME}"}
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled, match="nothing was touched"):
        running_sends.wait_for_end(operation, cancelled)


@pytest.mark.parametrize("ends", [True, False])
def test_end(scene: Scene, ends: bool) -> None:
    operation = plan_of(scene, scene.point(memory=False), RestoreOptions()).operation
    scene.world.sent = {f"{DATASET}@{NAME}"}
    with subprocess.Popen(["sleep", "1000"]) as process:
        other = Sender(Process(process.pid, 1, "another-boot"), f"zfs send {DATASET}@{NAME}", False)
        scene.world.sending = [other]
        with pytest.raises(RestoreImpossible, match="did not end within 30 s"):
            running_sends.end(operation)
        # One of that number, but not that process.
        assert process.poll() is None
        own = Sender(Process.of(process.pid), f"zfs send {DATASET}@{NAME}", False)
        scene.world.sending = [own]
        if not ends:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with pytest.raises(RestoreImpossible, match="did not end within 30 s"):
                running_sends.end(operation)
            return
        scene.world.sent = set()
        running_sends.end(operation)
        assert process.wait(10) == -signal.SIGTERM
