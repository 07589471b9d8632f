"""What the listener's events, and the notes of when hooks began and ended, say of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]


def pauses_s(events: Iterable[Event], guest: str) -> list[float]:
    """How long a guest stood still, each time. One that never went on is not among them."""
    pauses, since_s = [], None
    for event in events:
        if event["guest"] != guest:
            continue
        if event["event"] == "suspended" and since_s is None:
            since_s = event["at_s"]
        elif event["event"] == "resumed" and since_s is not None:
            pauses.append(event["at_s"] - since_s)
            since_s = None
    return pauses


def overlays_s(events: Sequence[Event], guest: str) -> float | None:
    """From when a guest went on until the last overlay was merged; None if none was."""
    own = [event for event in events if event["guest"] == guest]
    merged = [event["at_s"] for event in own if event["event"] == "merged"]
    resumed = [event["at_s"] for event in own if event["event"] == "resumed"]
    if not merged or not resumed:
        return None
    return float(max(merged) - resumed[0])


def hooks_s(log: str) -> dict[str, float]:
    """Seconds of each role, `pre_s` and `post_s`, from the first beginning to the last end."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    for line in log.splitlines():
        role, begun_s, ended_s, _status = line.split()
        begun[role] = min(float(begun_s), begun.get(role, float(begun_s)))
        ended[role] = max(float(ended_s), ended.get(role, 0.0))
    return {f"{role}_s": ended[role] - begun[role] for role in begun}


def failed(log: str) -> list[str]:
    """The roles of hooks that did not exit with 0."""
    return [line.split()[0] for line in log.splitlines() if line.split()[3] != "0"]
