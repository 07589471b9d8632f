"""A guest that we make stand still goes on within the deadline, whatever dies or hangs.

At each step of a real round of sanoid, of a Linux guest at the levels paused and quiesced, the
hook stops itself, and then something goes wrong. Its writer tells how long it could not write.
`--faults=` as for tests/lab/faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import scenario
from test_levels import DEBIAN, mode, prepared

from labkit import guests, linux
from labkit.api import Lab

# A round lets its guest stand still for 5 to 30 s here, when nothing goes wrong: the lab is slow.
MAX_FREEZE_S = 40
# Its own cadence, of a guest that is emulated in an emulated host, and ours of looking.
SLACK_S = 5.0
# Nobody can be let go while libvirt itself is coming back.
LIBVIRTD_BACK_S = 8.0

STEPS = {
    # No post hook resumes it in a round: the watchdog has done that by then.
    "paused": ("dump", "frozen", "tidy"),
    "quiesced": ("barrier", "freeze", "frozen", "resume or thaw"),
}
# Each is done to the lab while the hook stands at the step; then what is left of sanoid goes on.
FAULTS = {
    "hook killed": "kill -9 $hook",
    "sanoid killed": "kill -9 $sanoid",
    "all killed": "kill -9 $sanoid; pkill -9 -f '[z]vmsnap'",
    "hook hangs": f"sleep {MAX_FREEZE_S + 10}; kill -9 $hook",
    "watchdog killed": "pkill -9 -f '[z]vmsnap watchdog'",
    "watchdog hangs": "pkill -STOP -f '[z]vmsnap watchdog'",
    "libvirtd killed": "systemctl kill -s KILL libvirtd; systemctl reset-failed libvirtd; "
                       "systemctl start libvirtd",
}
_FEW = {"frozen-all killed-paused"}

# The hooks and what they have to say are those of the lab's own sanoid; pid of both on stdout.
HELD = """
ZVMSNAP_TEST_STOP_BEFORE='{step}' setsid sanoid --take-snapshots --verbose > /root/round.log 2>&1 &
sanoid=$!
until hook=$(pgrep -r T -f 'hooks.(pre|post)-snapsho[t]'); do
    kill -0 $sanoid || {{ cat /root/round.log; exit 1; }}
    sleep 0.5  # who looks takes CPU from the guest
done
{fault}
while kill -0 $sanoid 2> /dev/null || pgrep -f 'hooks.(pre|post)-snapsho[t]' > /dev/null; do
    pkill -CONT -f 'hooks.(pre|post)-snapsho[t]'
    sleep 0.5
done
true
"""

# The announced snapshots, by somebody else.
TAKE_ALL = f"""for name in $(python3 -c 'import glob, json
(path,) = glob.glob("/var/lib/zvmsnap/journal/*.json")
print(*json.load(open(path))["snapshot_names"])'); do zfs snapshot -r {DEBIAN.top}@$name; done"""


@dataclass(frozen=True)
class Cell:
    """A fault at a step of a round that takes a point of that level."""

    level: str
    step: str
    fault: str

    @property
    def id(self) -> str:
        """As it is named on the command line."""
        return f"{self.step}-{self.fault}-{self.level}"


CELLS = [Cell(level, step, fault) for level, steps in STEPS.items() for step in steps
         for fault in FAULTS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("--faults")
    chosen = [cell for cell in CELLS if asked == "all" or cell.id in _FEW]
    if asked not in ("all", "few"):
        chosen = [cell for cell in CELLS if any(part in cell.id for part in asked.split(","))]
    metafunc.parametrize("cell", chosen, ids=[cell.id for cell in chosen])


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    prepared(lab_session)
    return lab_session


@pytest.mark.late
def test_it_goes_on_within_the_deadline(lab: Lab, cell: Cell) -> None:
    lab.set_clock("2031-05-06T12:01:00")
    scenario.configure(lab, f"[limits]\nmax_freeze_s = {MAX_FREEZE_S}\nfreeze_timeout_s = 60")
    mode(lab, f"{cell.level},crash")
    before = linux.writes(lab)[-1].count
    with scenario.watched(lab, linux.NAME) as seen:
        lab.run(HELD.format(step=cell.step, fault=FAULTS[cell.fault]),
                timeout_s=scenario.ROUND_LIMIT_S)
        scenario.wait_until("nothing is left", lambda: scenario.leftovers(lab) == [], timeout_s=120)
        linux.wait_writes(lab, linux.NAME, linux.writes(lab)[-1].count + 2)
    print(f"MEASURED {cell.id}: no write for {seen.longest_silence_s:.1f} s, paused for "
          f"{max(seen.pauses_s, default=0):.1f} s")
    # On a slow machine it prints seldom, whatever holds it.
    limit_s = MAX_FREEZE_S + 2 + SLACK_S + seen.usual_silence_s
    if cell.fault == "libvirtd killed":
        limit_s += LIBVIRTD_BACK_S
    assert seen.longest_silence_s < limit_s
    scenario.assert_at_rest(lab, DEBIAN)
    assert scenario.state(lab, linux.NAME) == "running"
    counts = [write.count for write in linux.writes(lab)]
    assert counts == list(range(1, counts[-1] + 1)) and counts[-1] > before
    assert guests.serial(lab, linux.NAME).split().count("B") == 1
    for point in scenario.points(lab, linux.NAME):
        # RAM is kept only where it is known to fit the disks.
        assert point.manifest["level"] in (cell.level, "crash")
        assert bool(point.manifest["memory"]) is (point.manifest["level"] == "paused")
        assert point.manifest["level"] == cell.level or point.manifest["reason"]
    # The next round is as if nothing had been.
    scenario.pass_hours(lab, 1)
    # A post hook that had to resume it would stop there.
    stop_before = "resume or thaw" if cell.level == "paused" else ""
    with scenario.watched(lab, linux.NAME) as seen:
        scenario.take(lab, before=f"export ZVMSNAP_TEST_STOP_BEFORE='{stop_before}'")
    scenario.assert_at_rest(lab, DEBIAN)
    point = scenario.points(lab, linux.NAME)[-1]
    assert point.manifest["level"] == cell.level
    if cell.level == "paused":
        (paused_s,) = seen.pauses_s
        print(f"MEASURED paused: {point.timing['pause_s']:.2f} s in a round of sanoid, "
              f"{paused_s:.2f} s by libvirt's events")
        assert abs(point.timing["pause_s"] - paused_s) < SLACK_S


@pytest.mark.whole
def test_power_cut_while_paused(lab: Lab) -> None:
    """Its host dies under a guest that stands still: the boot recovers, and it can be started."""
    lab.run("cp /opt/zvmsnap/systemd/zvmsnap-recover.service /etc/systemd/system/ && "
            "systemctl enable zvmsnap-recover.service")
    lab.set_clock("2031-05-06T12:01:00")
    mode(lab, "paused")
    # All is taken, and the hook that has the guest keeps the watchdog from letting it go.
    lab.run(HELD.format(step="frozen", fault=f"{TAKE_ALL}\nsync; exit 0"),
            timeout_s=scenario.ROUND_LIMIT_S)
    assert scenario.state(lab, linux.NAME) == "paused"
    lab.powercut()
    scenario.wait_until("nothing is left", lambda: scenario.leftovers(lab) == [], timeout_s=180)
    point = scenario.the_point(lab, linux.NAME)
    assert point.manifest["level"] == "crash"
    assert "went on before its snapshot was known" in point.manifest["reason"]
    assert scenario.state(lab, linux.NAME) == "shut off"
