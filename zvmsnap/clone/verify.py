"""Checks whether a point is good: its files are read to their end; and it can be started.

It is started as a clone without a network: the clone must live, its screen is kept, and the clone
is removed. The results are kept beside the point (verify.json, boot.json, verify.png), and `zvmsnap
list` shows them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from zvmsnap.clone import screenshot
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.common import log
from zvmsnap.common.errors import (
    CloneUntrusted,
    LibvirtFailed,
    PoolMissing,
    SnapshotMissing,
    VerifyFailed,
    ZvmsnapError,
)
from zvmsnap.common.waiting import now_s, wait_until
from zvmsnap.config.settings import Config
from zvmsnap.points import locate, memory_image, vault
from zvmsnap.points.definition import definition_of
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import SCREEN, VerifyResult, keep
from zvmsnap.virt import agent
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs

CLONES = "zvmsnap-verify-"  # what their names begin with

_LIVES_WITHIN_S = 60
_AGENT_WITHIN_S = 20
_COMMAND_TIMEOUT_S = 120
_POLL_S = 1.0
_BY_AGENT = "its agent answers"

# Less may be QEMU itself, of a guest whose CPUs do nothing.
_WORKED_S = 0.05


def check_files(point: RestorePoint, liveness: Liveness) -> VerifyResult:
    """Read the point's files, and look its snapshots up; the result is kept. Raises PointGone.

    It is not kept if nothing is wrong but that a pool is not imported.
    """
    problems = _problems(point, liveness)
    if problems and (now := _without_its_memory(point)):
        problems = _problems(now, liveness)
    result = VerifyResult(checked=_now(), why="; ".join(map(str, problems)))
    return result if _is_only_away(problems) else _kept(point, result)


def boot(
    config: Config, host: Host, point: RestorePoint, expect: str | None, *, trust: bool = False
) -> VerifyResult:
    """Start the point as a clone, see whether it lives, and remove it; the result is kept.

    `expect` is a command that must end with 0 in the guest, run by its agent. The result is not
    kept if a pool is not imported, or `trust` is needed: the point may be good. Raises PointGone.
    """
    name = f"{CLONES}{secrets.token_hex(4)}"
    begun_s = time.monotonic()
    result = VerifyResult(checked=_now(), booted=True)
    try:
        operation = plan_clone(config, host, point, CloneOptions(name, trust=trust))
        with CloneCreation(config, host, operation).temporary():
            to_running_s = time.monotonic() - begun_s
            result = _watch(host.guest(operation.uuid), point, expect, result)
        result = msgspec.structs.replace(result, to_running_s=round(to_running_s, 2))
    except (PoolMissing, CloneUntrusted) as error:
        return msgspec.structs.replace(result, why=str(error))
    except Exception as error:  # the next point is looked at all the same
        if now := _without_its_memory(point):
            return boot(config, host, now, expect, trust=trust)
        result = msgspec.structs.replace(result, why=log.one_line(error))
    return _kept(point, result)


def _without_its_memory(point: RestorePoint) -> RestorePoint | None:
    """The point as it is now, if its RAM was removed since it was read: that is no fault of it."""
    now = vault.entry_in(point.directory) if point.manifest.memory else None
    return now if isinstance(now, RestorePoint) and now.manifest.memory is None else None


def was_pruned(point: RestorePoint, known: Liveness) -> bool:
    """Were its snapshots destroyed since they were listed, so that the point goes as well?

    Raises ZfsFailed.
    """
    now = Liveness.by(zfs.all_snapshots(guids_of([point.manifest])))
    missing = _missing(point, now)
    return isinstance(missing, SnapshotMissing) and _missing(point, known) is None


def _kept(point: RestorePoint, result: VerifyResult) -> VerifyResult:
    try:
        keep(point, result)
    except OSError as error:
        return msgspec.structs.replace(
            result, why="; ".join(filter(None, (result.why, f"its result cannot be kept: {error}")))
        )
    return result


def _is_only_away(problems: Sequence[Exception]) -> bool:
    return bool(problems) and all(isinstance(error, PoolMissing) for error in problems)


def _problems(point: RestorePoint, liveness: Liveness) -> list[Exception]:
    problems: list[Exception] = []
    memory = point.manifest.memory
    try:
        definition_of(point)
    except ZvmsnapError as error:
        problems.append(error)
    if missing := _missing(point, liveness):
        problems.append(missing)
    try:
        if memory:
            memory_image.check(point.directory / memory.file, memory)
    except (ZvmsnapError, OSError) as error:
        problems.append(error)
    return problems


def _missing(point: RestorePoint, liveness: Liveness) -> SnapshotMissing | PoolMissing | None:
    try:
        locate.snapshots_of(point, liveness)
        return None
    except (SnapshotMissing, PoolMissing) as error:
        return error


def _watch(
    guest: Guest, point: RestorePoint, expect: str | None, result: VerifyResult
) -> VerifyResult:
    sign, output = _sign_of_life(guest), ""
    if expect:
        output = _run_expected(guest, expect)
        sign = _BY_AGENT  # which may have been late
    _keep_screen(guest, point.directory)
    return msgspec.structs.replace(result, alive=sign, output=output)


def _sign_of_life(guest: Guest) -> str:
    """Wait until the guest shows that it lives; returns how. Raises VerifyFailed."""
    begun_s = now_s()
    cpu_time_s = guest.cpu_time_s()
    screen = _screen(guest)
    with_agent = agent.has_agent(guest.xml())

    def sign() -> str:
        state = guest.state() if guest.is_active() else "off"
        if state != "running":
            raise VerifyFailed(f"its clone was started, but is {state} now")
        if with_agent and agent.answers(guest):
            return _BY_AGENT
        # A guest with an agent is given the time to start it.
        if not with_agent or now_s() - begun_s > _AGENT_WITHIN_S:
            if guest.cpu_time_s() - cpu_time_s > _WORKED_S:
                return "its CPU works"
            if _screen(guest) != screen:
                return "its screen changes"
        return ""

    seen = wait_until(sign, _LIVES_WITHIN_S, _POLL_S)
    if not seen:
        raise VerifyFailed(
            f"its clone was started, but did nothing for {_LIVES_WITHIN_S} s: no agent, no CPU "
            "time, no change on its screen"
        )
    return seen


def _run_expected(guest: Guest, command: str) -> str:
    ran = agent.run(guest, command, _COMMAND_TIMEOUT_S)
    if ran.exit_code:
        raise VerifyFailed(f"{command!r} in its clone ended with {ran.exit_code}: {ran.output}")
    return ran.output


def _keep_screen(guest: Guest, directory: Path) -> None:
    picture = _screen(guest)
    if not picture:
        return
    try:
        vault.put(directory, SCREEN, screenshot.png_of(picture))
    except FileNotFoundError:
        return  # the point was removed meanwhile, as `keep` will tell
    except (ValueError, OSError) as error:
        log.about(guest.name, "verify").warning("no picture of its screen: %s", error)


def _screen(guest: Guest) -> bytes:
    """A picture of its screen; empty for a guest without one."""
    try:
        return guest.screenshot()
    except LibvirtFailed:
        return b""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
