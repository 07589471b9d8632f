import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.clock import TestClock
from tests.fakes.guest import FakeGuest
from zvmsnap.common import foreign, log
from zvmsnap.common.errors import AgentSilent, LibvirtFailed
from zvmsnap.virt import agent
from zvmsnap.virt.agent import Ran


class Talking(FakeGuest):
    """A guest whose agent gives these answers; one that is an exception is raised."""

    def __init__(self, *answers: object) -> None:
        super().__init__()
        self.questions: list[dict[str, Any]] = []
        self.timeouts_s: list[int] = []
        self.time_s = 0.0
        self._answers: Iterator[object] = iter(answers)

    def agent_command(self, command: str, timeout_s: int) -> str:
        self.questions.append(json.loads(command))
        self.timeouts_s.append(timeout_s)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps({"return": answer})

    def agent_set_timeout(self, timeout_s: int) -> None:
        self.timeouts_s.append(timeout_s)

    def set_time(self, now_s: float) -> None:
        assert self.timeouts_s, "would block for ever"
        self.time_s = now_s


CHANNEL = "<channel type='unix'><target type='virtio' name='{}'/></channel>"


@pytest.mark.parametrize(
    ("devices", "has"),
    [
        ("", False),
        (CHANNEL.format("org.qemu.guest_agent.0"), True),
        (CHANNEL.format("com.redhat.spice.0"), False),
        (CHANNEL.format("com.redhat.spice.0") + CHANNEL.format("org.qemu.guest_agent.0"), True),
        ("<channel type='unix'><target type='virtio'/></channel><channel/>", False),
    ],
)
def test_has_agent(devices: str, has: bool) -> None:
    assert agent.has_agent(f"<domain><devices>{devices}</devices></domain>") is has


def test_answers() -> None:
    guest = Talking({}, LibvirtFailed("not connected", 86))
    assert agent.answers(guest)
    assert not agent.answers(guest)
    assert guest.questions == [{"execute": "guest-ping"}] * 2
    assert min(guest.timeouts_s) > 0


class Late(Talking):
    """A guest that was just resumed: its agent does not answer yet, or is not connected."""

    def __init__(self, fails: float = 0, state: str = "connected") -> None:
        super().__init__()
        self.equipment = CHANNEL.format("org.qemu.guest_agent.0")
        self.equipment = self.equipment.replace("0'/>", f"0' state='{state}'/>")
        self.fails = fails

    def set_time(self, now_s: float) -> None:
        self.fails -= 1
        if self.fails >= 0:
            raise AgentSilent("not yet", 86)
        super().set_time(now_s)


ABOUT = log.about("web", "restore")


@pytest.mark.parametrize("fails", [0, 3])
def test_clock(fails: int, caplog: pytest.LogCaptureFixture) -> None:
    guest = Late(fails)
    agent.try_clock(guest, ABOUT)
    assert guest.time_s > 1.7e9
    assert caplog.text == ""


@pytest.mark.parametrize(("state", "within_s"), [("connected", 60), ("disconnected", 5)])
def test_clock_of_a_guest_whose_agent_never_answers(
    state: str, within_s: float, clock: TestClock, caplog: pytest.LogCaptureFixture
) -> None:
    guest = Late(math.inf, state)
    agent.try_clock(guest, ABOUT)
    assert guest.time_s == 0
    assert clock.now_s() == pytest.approx(within_s, abs=0.5)
    assert "its clock could not be set, and is late: not yet" in caplog.text


def test_clock_without_an_agent() -> None:
    guest = Talking()
    agent.try_clock(guest, ABOUT)
    assert guest.time_s == 0 and guest.timeouts_s == []


def test_a_command_is_sent_again_only_if_it_did_not_arrive() -> None:
    guest = Talking(AgentSilent("no", 86), {"pid": 7}, AgentSilent("no", 86), {"exited": True})
    assert agent.run(guest, "true", 60).exit_code == -1
    guest = Talking(LibvirtFailed("sent, but not answered in time", 112))
    with pytest.raises(LibvirtFailed):
        agent.run(guest, "true", 60)
    guest = Talking(*[AgentSilent("no", 86)] * 60)
    with pytest.raises(AgentSilent):
        agent.run(guest, "true", 9)


def encoded(output: bytes) -> str:
    return base64.b64encode(output).decode()


@pytest.mark.parametrize(
    ("status", "ran"),
    [
        pytest.param({"exited": True, "exitcode": 0}, Ran(0, ""), id="says nothing"),
        pytest.param(
            {"exited": True, "exitcode": 3, "out-data": encoded(b"caf\xc3\xa9\nau lait\n")},
            Ran(3, "caf\xe9 au lait"),
            id="fails, with output",
        ),
        pytest.param({"exited": True, "signal": 9}, Ran(-1, ""), id="ended by a signal"),
        pytest.param(
            {"exited": True, "exitcode": 0, "out-data": encoded(b"\xff"), "out-truncated": True},
            Ran(0, r"\xff"),
            id="no text",
        ),
        pytest.param(
            {
                "exited": True,
                "exitcode": 1,
                "out-data": encoded(b"\x1b[2J\xe2\x80\xae" * 1_000_000),
            },
            Ran(1, (r"\x1b[2J\u202e" * 100)[: foreign.LINE_MAX - 1] + "…"),
            id="commands for a terminal, in megabytes",
        ),
    ],
)
def test_run(status: object, ran: Ran) -> None:
    guest = Talking({"pid": 7}, {"exited": False}, {"exited": False}, status)
    assert agent.run(guest, "echo 'a b' | wc", 60) == ran
    began, *asked = guest.questions
    assert began["arguments"] == {
        "path": "/bin/sh",
        "arg": ["-c", "echo 'a b' | wc"],
        "capture-output": True,
    }
    assert asked == [{"execute": "guest-exec-status", "arguments": {"pid": 7}}] * 3
    assert guest.timeouts_s == [60] * 4


def test_a_command_that_does_not_end() -> None:
    guest = Talking({"pid": 7}, *[{"exited": False}] * 60)
    with pytest.raises(LibvirtFailed, match="web: 'sleep 99' takes longer than 9 s"):
        agent.run(guest, "sleep 99", 9)


def test_no_agent() -> None:
    with pytest.raises(LibvirtFailed, match="not connected"):
        agent.run(Talking(LibvirtFailed("not connected", 86)), "true", 1)


HOSTILE: list[object] = [
    *("", "{", "[]", "null", "{}", '{"error": {"class": "x"}}', '{"return"' + ":[" * 9999),
    '{"return": {"pid": 1, "exited": true, "out-data": "\udcff"}}',
    *(None, 5, [], {}, "text", {"pid": "7"}, {"pid": None}, {"pid": 10**400}),
    {"exited": "yes"},
    {"exited": True, "exitcode": "0"},
    {"exited": True, "exitcode": 10**400},
    {"exited": True, "exitcode": 0, "out-data": "no base64!"},
    {"exited": True, "exitcode": 0, "out-data": 5},
]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: repr(answer)[:40])
@pytest.mark.parametrize("before", [(), ({"pid": 7},)], ids=["begun", "status"])
def test_senseless_answers(before: tuple[object, ...], answer: object) -> None:
    with pytest.raises(LibvirtFailed) as caught:
        agent.run(Talking(*before, answer, answer), "true", 60)
    assert str(caught.value).startswith("web: guest-exec")
    assert "no sense in the answer" in str(caught.value)


class Freezing(Talking):
    """A guest whose file systems can be frozen, once a time limit is set for its agent."""

    def fs_freeze(self) -> int:
        assert self.timeouts_s == [40], "would block for ever"
        return 3

    def fs_thaw(self) -> int:
        assert self.timeouts_s and self.timeouts_s[-1] < 40, "would block for ever"
        return 2


def test_freeze_and_thaw() -> None:
    guest = Freezing()
    assert (agent.freeze(guest, 40), agent.thaw(guest)) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "frozen"), [("frozen", True), ("thawed", False), ("FROZEN", False), ("", False)]
)
def test_is_frozen(answer: str, frozen: bool) -> None:
    guest = Talking(json.dumps({"return": answer}))
    assert agent.is_frozen(guest) is frozen
    assert guest.questions == [{"execute": "guest-fsfreeze-status", "arguments": {}}]


def verbs(**enabled: bool) -> dict[str, object]:
    known = {"freeze": True, "thaw": True, "status": True, **enabled}
    said = [{"name": f"guest-fsfreeze-{verb}", "enabled": on} for verb, on in known.items()]
    return {
        "version": "9.2",
        "supported_commands": [{"name": "guest-ping", "enabled": True}, *said],
    }


SENSELESS = "its agent does not answer: web: guest-info: no sense in the answer: "


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(verbs(), "", id="all"),
        pytest.param(
            verbs(freeze=False), "its agent does not allow guest-fsfreeze-freeze", id="forbidden"
        ),
        pytest.param(
            verbs(thaw=False, freeze=False),
            "its agent does not allow guest-fsfreeze-freeze, guest-fsfreeze-thaw",
            id="two forbidden",
        ),
        pytest.param(
            {"supported_commands": []},
            "its agent does not allow guest-fsfreeze-freeze, guest-fsfreeze-status, "
            "guest-fsfreeze-thaw",
            id="knows none, as on a file system that cannot",
        ),
        pytest.param(
            LibvirtFailed("web: no answer", 86), "its agent does not answer: web: no ", id="silent"
        ),
        pytest.param({}, SENSELESS, id="says nothing"),
        pytest.param("no JSON", SENSELESS, id="no JSON"),
        pytest.param('{"error": {}}', SENSELESS, id="an error"),
        pytest.param({"supported_commands": [{"name": 3}]}, SENSELESS, id="other types"),
        pytest.param("[" * 100000, SENSELESS, id="deep"),
    ],
)
def test_why_no_freeze(answer: object, why: str) -> None:
    said = agent.why_no_freeze(Talking(answer))
    assert (said or "").startswith(why)
    assert bool(said) is bool(why)


@pytest.mark.parametrize("answer", [3, None, ["frozen"], {"status": "frozen"}, "no JSON {"])
def test_senseless_answer_whether_it_is_frozen(answer: object) -> None:
    text = answer if isinstance(answer, str) else json.dumps({"return": answer})
    with pytest.raises(LibvirtFailed, match="guest-fsfreeze-status: no sense in the answer"):
        agent.is_frozen(Talking(text))
