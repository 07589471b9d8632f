"""Levels `crash` and `offline`: the disks as they are, and the definition."""

from __future__ import annotations

import logging

from zvmsnap.capture.steps import Attempt
from zvmsnap.config.level import ConsistencyLevel


def obstacle(_attempt: Attempt) -> str:
    """Any guest can have it."""
    return ""


def capture(attempt: Attempt) -> None:
    """Raises StepFailed."""
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
