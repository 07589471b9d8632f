"""The RAM of a point is stored, and whoever does it dies: it is there all the time, and whole.

sanoid and its hooks are killed before anything is stored. Whoever recovers dies as well, each time
at a later step; the next one begins with what is left then, and the last one finishes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import back
import pytest
import scenario
from back import zvmsnap
from test_recover import KILL_GUARD, STOPPED

from labkit import guests
from labkit.api import Lab


@dataclass(frozen=True)
class Step:
    """Where one dies: before a call of the kernel, the `number`-th of a thread for that path."""

    call: str
    path: str
    number: int = 1


NEW = "{vault}/web/.incoming-{capture}"
STAGED = "{staging}/{capture}/point"
PAGES, REST = f"{NEW}/memory.pages", f"{NEW}/memory.rest"
STEPS = {
    "clone of the last pages": Step("ioctl", PAGES),
    "half of the pages": Step("pwrite64", PAGES, 2),
    "pages durable": Step("fsync", PAGES),
    "half of the rest": Step("write", REST, 3),
    "rest durable": Step("fsync", REST),
    "pages read back": Step("lseek", PAGES, 2),
    "rest read back": Step("pread64", REST),
    "manifest": Step("renameat", NEW, 3),  # after both definitions
    "the point appears": Step("rename", NEW),
    "the first file of staging goes": Step("unlinkat", STAGED),
    "the second file of staging goes": Step("unlinkat", STAGED, 2),
    "the journal entry goes": Step("unlink", "{journal}/{uuid}.json"),
}


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The second point of `web` is about to be stored, by nobody."""

    def make(lab: Lab) -> None:
        scenario.pass_hours(lab, 1)
        lab.start("ZVMSNAP_TEST_STOP_BEFORE=store exec sanoid --take-snapshots")
        lab.run(STOPPED.format(hook="post-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
        lab.run(f"{KILL_GUARD}; pkill -KILL -x sanoid; pkill -KILL -x post-snapshot; "
                "sync; zpool sync")

    scenario.stage(lab_session, "to-be-stored", scenario.taken, make)
    return lab_session


@pytest.mark.parametrize(("names", "power_cut"), [
    pytest.param(["half of the pages"], False, id="killed"),
    pytest.param([*STEPS], False, id="killed at each step", marks=pytest.mark.whole),
    pytest.param([*STEPS], True, id="power cut at each step",
                 marks=[pytest.mark.whole, pytest.mark.long]),
])
def test_ram_is_there_whoever_dies(lab: Lab, names: Sequence[str], power_cut: bool) -> None:
    (older,) = scenario.points(lab, "web")
    (entry,) = (json.loads(lab.get(path)) for path in
                lab.run(f"ls {scenario.JOURNAL}/*-*.json").stdout.split())
    assert entry["step"] == "store"
    places = {"vault": scenario.VAULT, "staging": scenario.STAGING, "journal": scenario.JOURNAL,
              "capture": entry["capture"], "uuid": entry["uuid"]}
    image = f"{STAGED.format(**places)}/memory.img"
    digest = lab.run(f"sha256sum {image}").stdout
    for name in names:
        die(lab, name, places)
        if power_cut:
            lab.powercut()
        assert_there(lab, older, image, digest)

    zvmsnap(lab, "recover")
    back.assert_nothing_left(lab)
    scenario.assert_at_rest(lab)
    old, new = scenario.points(lab, "web")
    assert old == older
    assert_verified(lab)
    assert (new.manifest["level"], new.manifest["memory"]["file"]) == ("memory", "memory.pages")
    snapshot = back.hourly(lab, 1)
    stored = back.stored_count(lab, snapshot)
    lab.run("virsh destroy web", check=not power_cut)
    since = guests.serial_size_bytes(lab, "web")
    back.restore(lab, f"web@{snapshot}", "--no-safety")
    back.assert_goes_on(lab, "web", stored, since)


def die(lab: Lab, name: str, places: dict[str, str]) -> None:
    """Recover, up to that step."""
    step = STEPS[name]
    path = step.path.format(**places)
    done = lab.run(
        f"strace -f -q -o /root/strace -P {path} -e trace={step.call} "
        f"-e inject={step.call}:signal=KILL:when={step.number} zvmsnap recover; echo $?",
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    assert done.stdout.split()[-1:] == ["137"], (name, done, lab.run("cat /root/strace").stdout)


def assert_there(lab: Lab, older: scenario.Point, image: str, digest: str) -> None:
    """What libvirt wrote is there as it was, or the point is: never neither, never half a point."""
    points = scenario.points(lab, "web")
    assert points[:1] == [older] and len(points) in (1, 2)
    if len(points) == 1:
        assert lab.run(f"sha256sum {image}").stdout == digest
    else:
        assert points[1].manifest["memory"]["file"] == "memory.pages"
        assert_verified(lab)


def assert_verified(lab: Lab) -> None:
    said = zvmsnap(lab, "verify", "--json", "web").stdout
    assert {each["why"] for each in json.loads(said)["points"].values()} == {""}
