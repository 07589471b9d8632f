"""What became of each test of tests/lab, line by line as it comes: build/lab.jsonl.

So that a run that was ended can go on where it was (`--missing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit import settings, version

LINES = settings.CHECKOUT_DIR / "build" / "lab.jsonl"


@dataclass(frozen=True)
class Outcome:
    """Of one test: how long it took, by the clock and of CPU; which code it was, its own too.

    `why` is what pytest says of its failure, which is printed when all tests have ended.
    """

    test: str
    passed: bool
    seconds: float
    cpu_s: float
    code: str
    why: str = ""


def code_of(test: str) -> str:
    """Which code a test, by its node id, is of."""
    return version.seen_by(settings.CHECKOUT_DIR / test.partition("::")[0])


def append(outcome: Outcome) -> None:
    """Keep it, whatever comes next."""
    LINES.parent.mkdir(exist_ok=True)
    with LINES.open("a") as lines:
        lines.write(json.dumps(asdict(outcome)) + "\n")


def latest() -> dict[str, Outcome]:
    """The last outcome of each test."""
    return {outcome.test: outcome for outcome in _outcomes(LINES)}


def passed() -> list[str]:
    """Tests that passed the last time, with the code of now."""
    return [
        test for test, outcome in latest().items()
        if outcome.passed and _exists(test) and outcome.code == code_of(test)
    ]


def _exists(test: str) -> bool:
    return (settings.CHECKOUT_DIR / test.partition("::")[0]).exists()


def _outcomes(path: Path) -> Iterable[Outcome]:
    if path.exists():
        for line in path.read_text().splitlines():
            # Of a run that was killed there may be half a line; of older code other fields.
            with suppress(ValueError, TypeError):
                yield Outcome(**json.loads(line))
