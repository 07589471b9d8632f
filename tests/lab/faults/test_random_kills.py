"""Twenty kills, each of somebody else and at another time of a round; nobody helps but systemd.

The seed says who and when, so that a failure can be had again: ZVMSNAP_KILLS_SEED.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import scenario

from faults import stages, verdict
from labkit import settings
from labkit.api import Lab

KILLS = int(os.environ.get("ZVMSNAP_KILLS", "20"))
SEED = os.environ.get("ZVMSNAP_KILLS_SEED", "13")
STORY = Path(settings.CHECKOUT_DIR) / "build" / "kills.jsonl"


@pytest.mark.whole
@pytest.mark.long
def test_whoever_is_killed_and_whenever(lab_session: Lab) -> None:
    lab = lab_session
    stages.base(lab)
    STORY.parent.mkdir(exist_ok=True)
    found = []
    with STORY.open("w") as told:
        for number in range(1, KILLS + 1):
            story = stages.tell(lab, "strike", SEED, str(number))
            wrong = verdict.after_a_kill(story)
            told.write(json.dumps({"number": number, "wrong": wrong, **story}) + "\n")
            told.flush()
            found += [f"kill {number}, of {story.get('victim')}: {each}" for each in wrong]
        story = stages.tell(lab, "finale")
        wrong = verdict.after_all_kills(story)
        told.write(json.dumps({"finale": wrong, **story}) + "\n")
    assert not [*found, *wrong], "\n".join([f"seed {SEED}", *found, *wrong])
    assert len(scenario.points(lab)) > 0
