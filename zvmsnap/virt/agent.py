"""The agent in a guest: does it answer, set the clock, freeze and thaw, run a command.

Its calls block for ever unless a time limit is set first (libvirt, virDomainQemuAgentCommand).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from zvmsnap.common import foreign, json_file, waiting
from zvmsnap.common.errors import AgentSilent, LibvirtFailed
from zvmsnap.common.log import Logger
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

# Long, as the agent of a guest that was just resumed, or is busy, is slow.
_ANSWER_TIMEOUT_S = 30
_PING_TIMEOUT_S = 5
_CLOCK_WITHIN_S = 60
_CONNECTED_WITHIN_S = 5
_POLL_S = 0.2


def has_agent(xml: str) -> bool:
    """Does the definition have a channel for an agent?"""
    return bool(domain_xml.parse(xml).agent)


def answers(guest: Guest) -> bool:
    """Is there an agent that answers now?"""
    try:
        guest.agent_command('{"execute": "guest-ping"}', _PING_TIMEOUT_S)
    except LibvirtFailed:
        return False
    return True


def try_clock(guest: Guest, log: Logger) -> None:
    """Set the clock of a guest whose RAM was loaded, if it has an agent; warn if that fails.

    An agent may need some time to answer after the guest was resumed.
    """
    begun_s = waiting.now_s()
    while error := _set_clock(guest):
        within_s = _CLOCK_WITHIN_S if _is_connected(guest) else _CONNECTED_WITHIN_S
        if waiting.now_s() - begun_s > within_s:
            log.warning("its clock could not be set, and is late: %s", error)
            return
        waiting.sleep(_POLL_S)


def _set_clock(guest: Guest) -> LibvirtFailed | None:
    """Set its clock, if it has an agent; returns what failed."""
    try:
        if has_agent(guest.xml()):
            guest.agent_set_timeout(_ANSWER_TIMEOUT_S)
            guest.set_time(time.time())
    except LibvirtFailed as error:
        return error
    return None


def _is_connected(guest: Guest) -> bool:
    """Is the agent connected to its channel, though it may not answer?"""
    try:
        return domain_xml.parse(guest.xml()).agent == "connected"
    except LibvirtFailed:
        return False


class _Verb(msgspec.Struct):
    name: str
    enabled: bool


class _Info(msgspec.Struct):
    supported_commands: tuple[_Verb, ...]


_FREEZES = {"guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"}


def why_no_freeze(guest: Guest) -> str | None:
    """Why it cannot freeze file systems; None if it can."""
    try:
        info = _ask(guest, "guest-info", {}, _Info)
    except LibvirtFailed as error:
        return f"its agent does not answer: {error}"
    missing = _FREEZES - {verb.name for verb in info.supported_commands if verb.enabled}
    return f"its agent does not allow {', '.join(sorted(missing))}" if missing else None


def freeze(guest: Guest, timeout_s: int) -> int:
    """Freeze the guest's file systems; returns how many. Raises LibvirtFailed.

    Whatever it raises, they may be frozen: thaw.
    """
    guest.agent_set_timeout(timeout_s)
    return guest.fs_freeze()


def thaw(guest: Guest) -> int:
    """Thaw the guest's file systems; returns how many were still frozen. Raises LibvirtFailed."""
    guest.agent_set_timeout(_ANSWER_TIMEOUT_S)
    return guest.fs_thaw()


def is_frozen(guest: Guest) -> bool:
    """Are its file systems frozen? Raises LibvirtFailed."""
    return _ask(guest, "guest-fsfreeze-status", {}, str) == "frozen"


@dataclass(frozen=True)
class Ran:
    """How a command in a guest ended; `output` is one short line of what it printed."""

    exit_code: int
    output: str


class _Started(msgspec.Struct):
    pid: int


class _Status(msgspec.Struct):
    exited: bool
    exitcode: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] = -1  # -1: ended by a signal
    output: bytes = msgspec.field(default=b"", name="out-data")


Answer = TypeVar("Answer")


def run(guest: Guest, command: str, timeout_s: float) -> Ran:
    """Run a shell command in the guest. Raises LibvirtFailed, also if it takes too long."""
    started = _ask(
        guest,
        "guest-exec",
        {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True},
        _Started,
        timeout_s,
    )

    def ended() -> _Status | None:
        status = _ask(guest, "guest-exec-status", {"pid": started.pid}, _Status, timeout_s)
        return status if status.exited else None

    status = waiting.wait_until(ended, timeout_s, _POLL_S)
    if status is None:
        raise LibvirtFailed(f"{guest.name}: {command!r} takes longer than {timeout_s:g} s")
    return Ran(status.exitcode, foreign.line(status.output))


def _ask(
    guest: Guest,
    command: str,
    arguments: dict[str, object],
    kind: type[Answer],
    within_s: float = 0,
) -> Answer:
    """Ask the agent; for `within_s` ask again if it is silent, and so has not got the question.

    If it has got it, its answer is waited for as long, and for _ANSWER_TIMEOUT_S at least.
    """
    sent = _send(guest, json.dumps({"execute": command, "arguments": arguments}), within_s)
    # Whoever is root in the guest may answer anything.
    try:
        answer: Answer = json_file.decode(
            json_file.decode(sent, dict[str, msgspec.Raw])["return"], kind
        )
        return answer
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError) as error:
        why = foreign.line(str(error))
        raise LibvirtFailed(f"{guest.name}: {command}: no sense in the answer: {why}") from error


def _send(guest: Guest, question: str, within_s: float) -> str:
    deadline_s = waiting.now_s() + within_s
    answer_timeout_s = max(math.ceil(within_s), _ANSWER_TIMEOUT_S)
    while True:
        try:
            return guest.agent_command(question, answer_timeout_s)
        except AgentSilent:
            if waiting.now_s() > deadline_s:
                raise
        waiting.sleep(_POLL_S)
