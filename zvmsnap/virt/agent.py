"""What the agent in a guest is asked for: is it there, what is the time, run this.

Its calls block for ever unless a time limit is set first (libvirt, virDomainQemuAgentCommand).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from zvmsnap.common.errors import AgentSilent, LibvirtFailed
from zvmsnap.common.log import Logger
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

# Long, as one in a guest that was just resumed, or works hard, is slow; it costs nothing otherwise.
_ANSWER_TIMEOUT_S = 30
_PING_TIMEOUT_S = 5
_CLOCK_WITHIN_S = 60
_CONNECTED_WITHIN_S = 5
_LOOK_EVERY_S = 0.2


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
    """Set the clock of a guest whose RAM was loaded, if it has an agent; else say that it is late.

    Right after it was resumed an agent may need its time to answer.
    """
    begun_s = time.monotonic()
    while True:
        try:
            if has_agent(guest.xml()):
                guest.agent_set_timeout(_ANSWER_TIMEOUT_S)
                guest.set_time(time.time())
            return
        except LibvirtFailed as error:
            if time.monotonic() - begun_s > (
                _CLOCK_WITHIN_S if _is_there(guest) else _CONNECTED_WITHIN_S
            ):
                log.warning("its clock is still of then: %s", error)
                return
        time.sleep(_LOOK_EVERY_S)


def _is_there(guest: Guest) -> bool:
    """Does the agent hold its end of the line, though it may not answer?"""
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
    """Freeze the guest's file systems; how many were. Raises LibvirtFailed.

    Whatever it raises, they may be frozen: thaw.
    """
    guest.agent_set_timeout(timeout_s)
    return guest.fs_freeze()


def thaw(guest: Guest) -> int:
    """Thaw the guest's file systems; how many were frozen still. Raises LibvirtFailed."""
    guest.agent_set_timeout(_ANSWER_TIMEOUT_S)
    return guest.fs_thaw()


def is_frozen(guest: Guest) -> bool:
    """Are its file systems frozen? Raises LibvirtFailed."""
    return _ask(guest, "guest-fsfreeze-status", {}, str) == "frozen"


@dataclass(frozen=True)
class Ran:
    """What became of a command in a guest."""

    exit_code: int
    output: str


class _Began(msgspec.Struct):
    pid: int


class _Status(msgspec.Struct):
    exited: bool
    exitcode: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**32)] = -1  # -1: ended by a signal
    output: bytes = msgspec.field(default=b"", name="out-data")


Answer = TypeVar("Answer")


def run(guest: Guest, command: str, timeout_s: float) -> Ran:
    """Run a shell command in the guest. Raises LibvirtFailed, also if it takes too long."""
    began = _ask(
        guest,
        "guest-exec",
        {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True},
        _Began,
        timeout_s,
    )
    deadline_s = time.monotonic() + timeout_s
    while True:
        status = _ask(guest, "guest-exec-status", {"pid": began.pid}, _Status, timeout_s)
        if status.exited:
            return Ran(status.exitcode, status.output.decode(errors="replace"))
        if time.monotonic() > deadline_s:
            raise LibvirtFailed(f"{guest.name}: {command!r} takes longer than {timeout_s:g} s")
        time.sleep(_LOOK_EVERY_S)


def _ask(
    guest: Guest,
    command: str,
    arguments: dict[str, object],
    kind: type[Answer],
    within_s: float = 0,
) -> Answer:
    """One that is silent, and so has not got the question, is asked again `within_s`."""
    question = json.dumps({"execute": command, "arguments": arguments})
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            answer = guest.agent_command(question, _ANSWER_TIMEOUT_S)
            break
        except AgentSilent:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(_LOOK_EVERY_S)
    # Whoever is root in the guest says what he likes.
    try:
        said = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(said["return"], type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError) as error:
        raise LibvirtFailed(f"{guest.name}: {command}: no sense in the answer: {error}") from error
