"""Is a point any good? Its files are read to their end; and, to be sure, it is started.

Started as a clone, without a network: it must live, its screen is kept, and it goes again. What
came out is kept beside the point (verify.json, boot.json, verify.png), and `zvmsnap list` shows it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from zvmsnap.clone import create, plan, screenshot
from zvmsnap.clone.destroy import destroy_clone
from zvmsnap.common import log
from zvmsnap.common.atomic_file import write_atomic
from zvmsnap.common.errors import LibvirtFailed, VerifyFailed, ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.points import locate, memory_image
from zvmsnap.points.definition import definition_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import SCREEN, VerifyResult, keep
from zvmsnap.virt import agent
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs.types import Snapshot

_LIVES_WITHIN_S = 60
_AGENT_WITHIN_S = 20
_COMMAND_TIMEOUT_S = 60
_LOOK_EVERY_S = 1.0

# Less may be QEMU itself, of a guest that stands still.
_WORKED_S = 0.05


def verify(point: RestorePoint, present: Mapping[str, Snapshot]) -> VerifyResult:
    """Read the point's files and look for its snapshots; the verdict is kept. Raises OSError."""
    return _kept(point, VerifyResult(checked=_now(), why="; ".join(_wrong(point, present))))


def boot(config: Config, hypervisor: Host, point: RestorePoint, expect: str | None) -> VerifyResult:
    """Start the point as a clone, see whether it lives, and remove it; the verdict is kept.

    `expect` is a command that must end with 0 in the guest, run by its agent. Raises OSError.
    """
    name = f"zvmsnap-verify-{secrets.token_hex(4)}"
    begun_s = time.monotonic()
    verdict = VerifyResult(checked=_now(), booted=True)
    try:
        task = plan.plan(config, hypervisor, point, plan.CloneOptions(name))
        create.CloneCreation(config, hypervisor, task).run()
        to_running_s = time.monotonic() - begun_s
        try:
            verdict = _watched(hypervisor.guest(task.uuid), point, expect, verdict)
        finally:
            destroy_clone(hypervisor, name, with_snapshots=True)
        verdict = msgspec.structs.replace(verdict, to_running_s=round(to_running_s, 2))
    except ZvmsnapError as error:
        verdict = msgspec.structs.replace(verdict, why=str(error))
    return _kept(point, verdict)


def _wrong(point: RestorePoint, present: Mapping[str, Snapshot]) -> list[str]:
    found = []
    memory = point.manifest.memory
    try:
        definition_of(point)
    except ZvmsnapError as error:
        found.append(str(error))
    try:
        locate.snapshots_of(point, present)
    except ZvmsnapError as error:
        found.append(str(error))
    try:
        if memory:
            memory_image.check(point.directory / memory.file, memory)
    except (ZvmsnapError, OSError) as error:
        found.append(str(error))
    return found


def _watched(
    guest: Guest, point: RestorePoint, expect: str | None, verdict: VerifyResult
) -> VerifyResult:
    alive = _lives(guest)
    output = _expected(guest, expect) if expect else ""
    _keep_screen(guest, point.directory)
    return msgspec.structs.replace(verdict, alive=alive, output=output)


def _lives(guest: Guest) -> str:
    """By what the guest is seen to live. Raises VerifyFailed."""
    begun_s = time.monotonic()
    worked_s = guest.cpu_time_s()
    screen = _screen(guest)
    with_agent = agent.has_agent(guest.xml())
    while time.monotonic() - begun_s < _LIVES_WITHIN_S:
        state = guest.state() if guest.is_active() else "off"
        if state != "running":
            raise VerifyFailed(f"its clone was started, but is {state} now")
        if with_agent and agent.answers(guest):
            return "its agent answers"
        # One that has an agent is given the time to show it.
        if not with_agent or time.monotonic() - begun_s > _AGENT_WITHIN_S:
            if guest.cpu_time_s() - worked_s > _WORKED_S:
                return "its CPU works"
            if _screen(guest) != screen:
                return "its screen changes"
        time.sleep(_LOOK_EVERY_S)
    raise VerifyFailed(
        f"its clone was started, but did nothing for {_LIVES_WITHIN_S} s: no agent, no CPU time, "
        "no change on its screen"
    )


def _expected(guest: Guest, command: str) -> str:
    ran = agent.run(guest, command, _COMMAND_TIMEOUT_S)
    if ran.exit_code:
        raise VerifyFailed(f"{command!r} in its clone ended with {ran.exit_code}: {ran.output}")
    return ran.output


def _keep_screen(guest: Guest, directory: Path) -> None:
    pixmap = _screen(guest)
    if not pixmap:
        return
    try:
        write_atomic(directory / SCREEN, screenshot.png_of(pixmap))
    except ValueError as error:
        log.about(guest.name, "verify").warning("no picture of its screen: %s", error)


def _screen(guest: Guest) -> bytes:
    """Nothing for a guest without a screen."""
    try:
        return guest.screenshot()
    except LibvirtFailed:
        return b""


def _kept(point: RestorePoint, verdict: VerifyResult) -> VerifyResult:
    keep(point, verdict)
    return verdict


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
