"""Levels `crash` and `offline`: the disks as they are, and the definition.

For a backup the guest goes on on overlays, so that they stay as they are.
"""

from __future__ import annotations

import logging
import time

from zvmsnap.capture.steps import Attempt
from zvmsnap.common.steps import Step
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import own_overlays


def obstacle(_attempt: Attempt) -> str:
    """Any guest can have it."""
    return ""


def capture(attempt: Attempt) -> None:
    """Raises StepFailed, and other ZvmsnapErrors before an entry is open."""
    if attempt.run.request.on_overlays:
        _capture_on_overlays(attempt)
        return
    writer = attempt.open_entry()
    attempt.run_steps(attempt.preparation(writer), writer)
    writer.note(step="waiting")
    is_less = attempt.level is ConsistencyLevel.CRASH and attempt.missed
    attempt.log.log(
        logging.WARNING if is_less else logging.INFO,
        "level %s%s",
        attempt.level,
        f": {attempt.missed}" if attempt.missed else "",
    )


def _capture_on_overlays(attempt: Attempt) -> None:
    owner = own_overlays.owner_for(attempt.guest.xml())
    attempt.shared.reserve(attempt.guest.uuid, 0)
    writer = attempt.open_entry(overlays=True)

    def put_on_overlays() -> None:
        attempt.put_on_overlays(writer, owner)
        writer.note(disks_frozen_at_s=time.time())

    steps = [
        *attempt.preparation(writer),
        Step("overlay", put_on_overlays, lambda: attempt.release(writer)),
        Step("frozen", lambda: None),
    ]
    attempt.run_steps(steps, writer)
