"""Level `quiesced`: the agent freezes the file systems until the snapshot exists.

With `quiesce_overlay` they are frozen only until the guest is on overlays.
"""

from __future__ import annotations

import time

import msgspec

from zvmsnap.capture.steps import Attempt
from zvmsnap.common.errors import NotHeld, NotReached
from zvmsnap.common.process import uptime_s
from zvmsnap.common.steps import Step
from zvmsnap.disks import own_overlays
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points.manifest import PauseParts
from zvmsnap.quiesce import scripts
from zvmsnap.quiesce.barrier import Stage
from zvmsnap.quiesce.thaw import thaw_file_systems
from zvmsnap.virt import agent


def obstacle(_attempt: Attempt) -> str:
    """None beyond what `eligibility` knows."""
    return ""


def capture(attempt: Attempt) -> None:
    """Raises StepFailed, and other ZvmsnapErrors before an entry is open."""
    if why := agent.why_no_freeze(attempt.guest):
        raise NotReached(why)
    overlays = _can_use_overlays(attempt)
    owner = own_overlays.owner_for(attempt.guest.xml()) if overlays else None
    if overlays:
        attempt.shared.reserve(attempt.guest.uuid, 0)
    writer = attempt.open_entry(overlays=overlays)
    attempt.run_steps(_steps(attempt, writer, owner, overlays=overlays), writer)
    if overlays:
        attempt.log.info("its file systems were frozen for %.2f s", writer.entry.pause_s)
    else:
        attempt.log.info("its file systems are frozen")


def _can_use_overlays(attempt: Attempt) -> bool:
    request = attempt.run.request
    wanted = request.on_overlays if request.backup else attempt.config.quiesce_overlay
    return wanted and not attempt.eligibility.no_overlay


def _steps(
    attempt: Attempt, writer: EntryWriter, owner: tuple[int, int] | None, *, overlays: bool
) -> list[Step]:
    def release() -> None:
        attempt.release(writer)

    steps = attempt.preparation(writer)
    if scripts.exists(attempt.config, writer.entry, scripts.PRE_FREEZE):
        steps.append(Step("pre-freeze", lambda: _run_pre_freeze(attempt, writer), release))
    steps.append(Step("barrier", lambda: attempt.enter(Stage.FREEZE)))
    steps.append(Step("freeze", lambda: _freeze(attempt, writer), release))
    if overlays:
        # Undone with the freeze.
        steps.append(Step("overlay", lambda: _make_overlays(attempt, writer, owner)))
        steps.append(Step("thaw", lambda: _thaw(attempt, writer)))
    steps.append(Step("frozen", lambda: _check_still_frozen(attempt, writer)))
    return steps


def _run_pre_freeze(attempt: Attempt, writer: EntryWriter) -> None:
    attempt.enter(Stage.PRE_FREEZE)
    writer.note(thaw_script_due=True, held_since_s=uptime_s())
    scripts.run(attempt.config, writer.entry, scripts.PRE_FREEZE)


def _freeze(attempt: Attempt, writer: EntryWriter) -> None:
    held_since_s = uptime_s()
    writer.note(frozen=True, held_since_s=held_since_s)
    if not agent.freeze(attempt.guest, attempt.config.limits.freeze_timeout_s):
        raise NotHeld("its agent found no file system to freeze")
    writer.note(
        disks_frozen_at_s=time.time(),
        pause_parts=PauseParts(freeze_s=uptime_s() - held_since_s),
        **attempt.snapshots_before_freeze(writer.entry),
    )


def _make_overlays(attempt: Attempt, writer: EntryWriter, owner: tuple[int, int] | None) -> None:
    attempt.put_on_overlays(writer, owner)
    parts = writer.entry.pause_parts
    overlays_s = uptime_s() - writer.entry.held_since_s - parts.freeze_s
    writer.note(
        disks_frozen_at_s=time.time(),
        pause_parts=msgspec.structs.replace(parts, overlays_s=overlays_s),
    )


def _thaw(attempt: Attempt, writer: EntryWriter) -> None:
    thaw_file_systems(attempt.config, attempt.guest, writer, attempt.log)


def _check_still_frozen(attempt: Attempt, writer: EntryWriter) -> None:
    """This process may have been stopped for hours since the freeze, without knowing it."""
    if writer.entry.frozen and not agent.is_frozen(attempt.guest):
        raise NotHeld("its file systems thawed before the snapshot could be taken")
