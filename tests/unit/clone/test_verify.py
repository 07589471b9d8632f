import base64
import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.restore_scene import DATASET, Killed, Machine, MachineHost, Scene
from zvmsnap.clone import verify
from zvmsnap.clone.create import CloneCreation
from zvmsnap.common.errors import PointGone
from zvmsnap.journal.operation import CloneOperation
from zvmsnap.points import memory_image, vault, verify_result
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import SCREEN, VerifyResult

AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
BLACK, WHITE = b"P6 1 1 255\n\0\0\0", b"P6 1 1 255\n\xff\xff\xff"


class Started(Machine):
    """A clone that lives as the test says."""

    lives_by = ""
    exit_code = 0

    def is_active(self) -> bool:
        if self.lives_by == "dies" and "resume" in self.calls and self.active:
            self.shut_off()
        return super().is_active()

    def cpu_time_s(self) -> float:
        if self.lives_by in ("cpu", "late agent"):
            self.worked_s += 1
        return super().cpu_time_s()

    def screenshot(self) -> bytes:
        if self.lives_by == "screen":
            self.picture = WHITE if self.picture == BLACK else BLACK
        return super().screenshot()

    def agent_command(self, command: str, timeout_s: int) -> str:
        question = json.loads(command)
        is_late = self.lives_by == "late agent" and question["execute"] != "guest-ping"
        if self.lives_by != "agent" and not is_late:
            return super().agent_command(command, timeout_s)
        self.asked.append(question["execute"])
        said = base64.b64encode(b"what it said\n").decode()
        return json.dumps(
            {
                "return": {
                    "guest-ping": {},
                    "guest-exec": {"pid": 7},
                    "guest-exec-status": {
                        "exited": True,
                        "exitcode": self.exit_code,
                        "out-data": said,
                    },
                }[question["execute"]]
            }
        )


class Clones(MachineHost):
    """Its clones live by what `lives_by` says."""

    lives_by = ""
    exit_code = 0

    def new_guest(self, name: str, uuid: str) -> FakeGuest:
        made = Started(self.world, name, uuid)
        made.lives_by, made.exit_code = self.lives_by, self.exit_code
        self.made = made
        return made


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.host = Clones(scene.world, scene.guest)
    return scene


def kept(point: RestorePoint) -> VerifyResult:
    result = verify_result.read(point)
    assert result
    return result


@pytest.mark.parametrize(
    "stored", [{}, {"plain": True}, {"zstd": True}, {"memory": False}], ids=str
)
def test_whole(scene: Scene, stored: dict[str, bool]) -> None:
    point = scene.point(**stored)
    result = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    assert (result.good, result.why, result.booted) == (True, "", False)
    assert kept(point) == result


def flipped(point: RestorePoint) -> None:
    path = point.directory / "memory.pages"
    path.write_bytes(b"x" + path.read_bytes()[1:])


def flipped_rest(point: RestorePoint) -> None:
    path = point.directory / "memory.rest"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut(point: RestorePoint) -> None:
    path = point.directory / "memory.pages"
    path.write_bytes(path.read_bytes()[:-1])


def without_ram(point: RestorePoint) -> None:
    (point.directory / "memory.pages").unlink()


def without_rest(point: RestorePoint) -> None:
    (point.directory / "memory.rest").unlink()


def a_directory(point: RestorePoint) -> None:
    (point.directory / "memory.rest").unlink()
    (point.directory / "memory.rest").mkdir()


def undefined(point: RestorePoint) -> None:
    (point.directory / PERSISTENT_XML).unlink()
    (point.directory / DOMAIN_XML).unlink()


def damaged_xml(point: RestorePoint) -> None:
    (point.directory / PERSISTENT_XML).write_text("<")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flipped, "memory.pages of .* does not match its checksum"),
        (flipped_rest, "memory.rest of .* does not match its checksum"),
        (cut, "which it has not: it is damaged"),
        (without_ram, "memory.pages cannot be opened"),
        (without_rest, "memory.rest cannot be opened"),
        (a_directory, "is no regular file"),
        (undefined, "its definition is gone"),
        (damaged_xml, "persistent.xml: cannot be read"),
    ],
)
def test_damaged(scene: Scene, spoil: Callable[[RestorePoint], None], says: str) -> None:
    point = scene.point()
    spoil(point)
    result = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    assert not result.good
    assert re.search(says, result.why)
    assert kept(point) == result


def test_ram_that_cannot_be_read_is_a_result(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(memory_image, "check", fail)
    result = verify.check_files(scene.point(), Liveness.by(scene.world.all_snapshots()))
    assert "Input/output error" in result.why


def test_all_that_is_wrong_is_said_at_once(scene: Scene) -> None:
    point = scene.point()
    without_ram(point)
    undefined(point)
    result = verify.check_files(point, Liveness((), {"tank": 0}))
    assert "its definition is gone" in result.why
    assert "cannot be opened" in result.why
    assert "has no snapshot of tank/web any more" in result.why


@pytest.mark.parametrize(
    ("lives_by", "devices", "good", "says"),
    [
        pytest.param("agent", AGENT, True, "its agent answers", id="agent"),
        pytest.param("agent", "", False, "did nothing", id="agent, but no channel"),
        pytest.param("cpu", "", True, "its CPU works", id="CPU"),
        pytest.param("cpu", AGENT, True, "its CPU works", id="CPU, after its agent kept silent"),
        pytest.param("screen", "", True, "its screen changes", id="screen"),
        pytest.param("", "", False, "did nothing for 60 s: no agent, no CPU time", id="nothing"),
        pytest.param("dies", "", False, "was started, but is off now", id="dies"),
    ],
)
def test_boot(scene: Scene, lives_by: str, devices: str, good: bool, says: str) -> None:
    scene.guest.equipment = devices
    point = scene.point()
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = lives_by
    before = scene.world.summary()
    result = verify.boot(scene.config, scene.host, point, None)
    assert (result.good, result.booted) == (good, True)
    assert says in (result.alive if good else result.why)
    assert kept(point) == result
    assert (point.directory / SCREEN).exists() is (lives_by == "screen")
    check_gone(scene, before)


def check_gone(scene: Scene, before: object) -> None:
    assert scene.world.summary() == before
    assert [guest.name for guest in scene.host.guests()] == ["web"]
    assert (scene.operations(), scene.staged()) == ([], [])
    assert scene.guest.calls == []


@pytest.mark.parametrize("exit_code", [0, 3])
def test_expected_command(scene: Scene, exit_code: int) -> None:
    scene.guest.equipment = AGENT
    point = scene.point()
    assert isinstance(scene.host, Clones)
    scene.host.lives_by, scene.host.exit_code = "agent", exit_code
    before = scene.world.summary()
    result = verify.boot(scene.config, scene.host, point, "true")
    assert result.good is (exit_code == 0)
    if exit_code:
        assert result.why == "'true' in its clone ended with 3: what it said"
    else:
        assert result.output == "what it said"
    assert kept(point) == result
    assert "guest-exec" in scene.host.made.asked
    check_gone(scene, before)


def test_an_agent_that_answers_late_is_the_sign_of_life(scene: Scene) -> None:
    scene.guest.equipment = AGENT
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "late agent"
    assert verify.boot(scene.config, scene.host, scene.point(), None).alive == "its CPU works"
    result = verify.boot(scene.config, scene.host, scene.point(), "true")
    assert (result.alive, result.output) == ("its agent answers", "what it said")


def test_expected_command_without_an_agent(scene: Scene) -> None:
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "cpu"
    before = scene.world.summary()
    result = verify.boot(scene.config, scene.host, scene.point(), "true")
    assert "not connected" in result.why
    check_gone(scene, before)


@pytest.mark.parametrize("when", ["begin", "planned", "watched", "end"])
def test_point_that_is_removed_while_it_is_started(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "screen"
    point = scene.point()
    before = scene.world.summary()
    module, name = {
        "begin": (verify, "plan_clone"),
        "planned": (CloneCreation, "temporary"),
        "watched": (verify, "_keep_screen"),
        "end": (verify, "keep"),
    }[when]
    real = getattr(module, name)

    def overtaken(*words: Any) -> Any:
        vault.remove(point)
        return real(*words)

    monkeypatch.setattr(module, name, overtaken)
    with pytest.raises(PointGone, match=f"^{point.name}: was removed meanwhile$"):
        verify.boot(scene.config, scene.host, point, None)
    check_gone(scene, before)


def test_point_that_is_removed_while_it_is_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = scene.point()
    monkeypatch.setattr(memory_image, "check", lambda *_: vault.remove(point))
    with pytest.raises(PointGone):
        verify.check_files(point, Liveness.by(scene.world.all_snapshots()))


@pytest.mark.parametrize("boot", [True, False])
def test_ram_that_is_removed_before_it_is_read_is_no_fault(scene: Scene, boot: bool) -> None:
    """keep-memory removes RAM while `verify` of all points takes its hours."""
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "cpu"
    point = scene.point()
    vault.rewrite(point, point.manifest.without_memory("RAM removed by keep-memory"))
    vault.remove_files(point.directory, point.memory.files)
    if boot:
        result = verify.boot(scene.config, scene.host, point, None)
    else:
        result = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    assert (result.good, result.why) == (True, "")
    assert kept(point) == result


def test_result_that_cannot_be_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verify, "keep", full)
    result = verify.check_files(scene.point(), Liveness.by(scene.world.all_snapshots()))
    assert result.why == "its result cannot be kept: [Errno 28] No space left on device"


def test_each_act_that_fails_is_a_result_and_leaves_no_clone(scene: Scene) -> None:
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "cpu"
    point = scene.point()
    before = scene.world.summary()
    scene.world.acts.clear()
    assert verify.boot(scene.config, scene.host, point, None).good
    acts = scene.world.acts[:]
    for number, act in enumerate(acts[: acts.index("resume") + 1]):
        scene.world.acts.clear()
        scene.world.errors = {(number, "before")}
        if act.startswith("write"):
            continue
        result = verify.boot(scene.config, scene.host, point, None)
        assert "failed here" in result.why, act
        assert kept(point) == result
        check_gone(scene, before)


def test_clone_that_a_sanoid_has_snapshotted_goes_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(guest: object) -> str:
        (name,) = (name for name in scene.world.pool if name not in ("tank", DATASET))
        scene.world.snap(f"{name}@autosnap")
        return "seen"

    monkeypatch.setattr(verify, "_sign_of_life", look)
    before = scene.world.summary()
    assert verify.boot(scene.config, scene.host, scene.point(), None).alive == "seen"
    check_gone(scene, before)


def test_clone_whose_verify_was_killed_is_removed_by_recover(scene: Scene) -> None:
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "screen"
    point = scene.point()
    before = scene.world.summary()
    scene.world.acts.clear()
    assert verify.boot(scene.config, scene.host, point, None).good
    acts = scene.world.acts[:]
    # While it watches, and until the clone is gone.
    watched = acts.index("resume")
    assert [act for act in acts[watched + 1 :] if not act.startswith("write")] == [
        "destroy",
        "undefine",
        "zfs destroy",
    ]
    for number in range(watched, len(acts)):
        for when in ("before", "after"):
            scene.world.acts.clear()
            scene.world.death = (number, when)
            with pytest.raises(Killed):
                verify.boot(scene.config, scene.host, point, None)
            scene.world.disarm()
            (operation,) = scene.operations()
            assert isinstance(operation, CloneOperation)
            CloneCreation(scene.config, scene.host, operation).discard()
            check_gone(scene, before)


@pytest.mark.parametrize("name", ["web", "the web server (old)", "w" * 200, "a@b"])
def test_guests_of_any_name_are_started(scene: Scene, name: str) -> None:
    assert isinstance(scene.host, Clones)
    scene.host.lives_by = "cpu"
    scene.guest.name = name
    assert verify.boot(scene.config, scene.host, scene.point(domain=name), None).good


def test_point_that_fits_nowhere(scene: Scene) -> None:
    scene.host.no_machine = "no such machine"
    point = scene.point()
    result = verify.boot(scene.config, scene.host, point, None)
    assert "no such machine" in result.why
    assert (result.booted, kept(point)) == (True, result)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema":2,"checked": 1}',
        b"\xff",
        b'{"schema":2,"checked":"x","why":null}',
    ],
)
def test_damaged_result_is_none(scene: Scene, content: bytes) -> None:
    point = scene.point()
    assert verify_result.read(point) is None
    (point.directory / verify_result.READ).write_bytes(content)
    assert verify_result.read(point) is None


def test_result_replaces_the_one_before(scene: Scene) -> None:
    point = scene.point()
    first = VerifyResult(checked="2026-11-21T00:00:00+00:00", why="x")
    for result in (first, msgspec.structs.replace(first, why="", booted=True, alive="y")):
        verify_result.keep(point, result)
        assert verify_result.read(point) == result


def test_a_point_that_is_not_trusted_is_not_bad(scene: Scene) -> None:
    """Nobody has started it: what was found before counts."""
    point = scene.point(memory=False)
    good = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    scene.made_here = False
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        shared = "<shmem name='x'/>"
        path.write_text(path.read_text().replace("<devices>", f"<devices>{shared}", 1))
    result = verify.boot(scene.config, scene.host, point, None)
    assert not result.good and "say --trust" in result.why
    assert kept(point) == good


@pytest.mark.parametrize("boot", [False, True])
def test_a_pool_that_is_not_imported_spoils_no_result(scene: Scene, boot: bool) -> None:
    """Nothing is known of its snapshots: what was found before counts."""
    point = scene.point()
    good = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    (ref,) = point.manifest.snapshots
    away = msgspec.structs.replace(ref, pool_guid=1, guid=1)
    point = RestorePoint(point.directory, point.manifest.with_snapshots((away,)))
    if boot:
        result = verify.boot(scene.config, scene.host, point, None)
    else:
        result = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    assert not result.good and "pool tank is not imported" in result.why
    assert kept(point) == good
    without_ram(point)
    result = verify.check_files(point, Liveness.by(scene.world.all_snapshots()))
    assert "cannot be opened" in result.why and kept(point) == result
