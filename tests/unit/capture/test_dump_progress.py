"""What is done to dumps, over a grid of guests and disks; and the table, row by row."""

import itertools

import pytest

from tests.fakes.simulated_dump import GIB, MIB, Machine, Outcome, SimulatedDump
from zvmsnap.capture.dump_progress import Action, DumpProgress, Look, Verb
from zvmsnap.config.settings import Limits

LIMITS = Limits()
RAM_GIB = (1, 16, 128, 256)
DISK_MB_PER_S = (20, 150, 500, 2000)
HOSTS = [
    pytest.param(ram_gib * GIB, mb * 10**6, id=f"{ram_gib} GiB at {mb} MB/s")
    for ram_gib, mb in itertools.product(RAM_GIB, DISK_MB_PER_S)
]


def room_of(ram_bytes: int, limits: Limits = LIMITS) -> int:
    return int(ram_bytes * limits.dump_max_ram_ratio)


def dumped(machine: Machine, limits: Limits = LIMITS) -> Outcome:
    room_bytes = room_of(machine.ram_bytes, limits)
    # A look each tenth of a second, as on a host; of dumps that take hours, fewer.
    step_s = max(0.1, room_bytes / machine.disk_bytes_per_s(0) / 5000)
    outcome = SimulatedDump(machine, limits, room_bytes, step_s).run()
    assert_bounded(outcome, machine, limits, step_s)
    return outcome


def assert_bounded(outcome: Outcome, machine: Machine, limits: Limits, step_s: float) -> None:
    """No dump is endless, outgrows what is reserved for it, or pauses the guest for too long."""
    per_step = step_s * max(machine.disk_bytes_per_s(at_s) for at_s in (0, 10**4))
    assert outcome.image_bytes <= room_of(machine.ram_bytes, limits) + per_step
    slowest_s = room_of(machine.ram_bytes, limits) / (limits.dump_min_mib_per_s * MIB)
    assert outcome.took_s <= slowest_s + 120
    assert outcome.paused_s <= limits.max_freeze_s + 2 * step_s


def assert_never_paused(outcome: Outcome) -> None:
    assert not outcome.aborted
    assert set(outcome.verbs) <= {Verb.ALLOW}
    assert outcome.paused_s <= LIMITS.pause_max_ms / 1000


@pytest.mark.parametrize(("ram_bytes", "disk"), HOSTS)
@pytest.mark.parametrize("used", [1.0, 0.1])
def test_idle_guest_is_never_paused(ram_bytes: int, disk: int, used: float) -> None:
    """A Linux that does nothing changes a few MiB again and again."""
    outcome = dumped(
        Machine(ram_bytes, lambda _: disk, lambda _: 2 * MIB, hot_bytes=64 * MIB, used=used)
    )
    assert_never_paused(outcome)
    assert outcome.took_s >= used * ram_bytes / disk * 0.9


@pytest.mark.parametrize(("ram_bytes", "disk"), HOSTS)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_converging_guest_is_never_paused(ram_bytes: int, disk: int, share: float) -> None:
    """It changes its RAM at a share of the speed at which it is written."""
    assert_never_paused(
        dumped(Machine(ram_bytes, lambda _: disk, lambda _: disk * share, hot_bytes=ram_bytes))
    )


@pytest.mark.parametrize(("ram_bytes", "disk"), HOSTS)
def test_burst_in_an_idle_guest_is_sat_out(ram_bytes: int, disk: int) -> None:
    """For a tenth of the first pass it changes all that it has in use; then it is idle again."""
    first_s = ram_bytes / disk

    def dirty(at_s: float) -> float:
        return disk * 2 if 1.02 * first_s < at_s < 1.06 * first_s else MIB

    assert_never_paused(dumped(Machine(ram_bytes, lambda _: disk, dirty, hot_bytes=ram_bytes // 8)))


@pytest.mark.parametrize(("ram_bytes", "disk"), HOSTS)
def test_disk_that_becomes_slow(ram_bytes: int, disk: int) -> None:
    """The host's cache takes the first seconds, ten times as fast."""
    assert_never_paused(
        dumped(
            Machine(
                ram_bytes,
                lambda at_s: disk * 10 if at_s < 5 else disk,
                lambda _: 2 * MIB,
                hot_bytes=64 * MIB,
            )
        )
    )


@pytest.mark.parametrize(("ram_bytes", "disk"), HOSTS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 1000])
def test_guest_that_writes_hard_is_paused_for_no_longer_than_the_limit(
    ram_bytes: int, disk: int, share: float, ratio: float
) -> None:
    limits = Limits(dump_max_ram_ratio=ratio)
    hot_bytes = int(ram_bytes * share)
    outcome = dumped(
        Machine(ram_bytes, lambda _: disk, lambda _: disk * 5, hot_bytes=hot_bytes), limits
    )
    # All of what it has in use is changed again in each pass.
    rest_s = hot_bytes / disk
    if rest_s < limits.pause_first_ms / 1000:
        assert_never_paused(outcome)
    elif rest_s > limits.max_freeze_s * 1.1 or ratio < 1 + share:
        assert outcome.aborted
        assert outcome.paused_s == 0
    elif ratio > 1.5 or share < 0.2:
        assert not outcome.aborted
        # Until it is paused, some of what was just written is changed again.
        assert outcome.paused_s <= rest_s * 2 + 0.5


def test_stalled_disk_ends_the_dump() -> None:
    outcome = dumped(Machine(GIB, lambda at_s: 150 * MIB if at_s < 2 else 0.0))
    assert outcome.aborted
    assert outcome.took_s <= 121
    assert "MiB/s" in outcome.actions[-1].why


def test_disk_that_stalls_during_the_pause_ends_it() -> None:
    """It was to take 20 s."""
    outcome = dumped(
        Machine(
            16 * GIB,
            lambda at_s: 100 * MIB if at_s < 240 else 0.0,
            lambda _: GIB,
            hot_bytes=2 * GIB,
        )
    )
    assert outcome.verbs[-2:] == [Verb.PAUSE, Verb.ABORT]
    assert 60 <= outcome.paused_s <= 60.3


# -- row by row

ROOM = 100 * GIB


class Told:
    """A progress that is told of one look after the other."""

    def __init__(self, limits: Limits = LIMITS, room_bytes: int = ROOM) -> None:
        self.progress = DumpProgress(limits, room_bytes, 0.0)

    def passes(self, *rests: int, each_s: float = 10.0, image: int = 0) -> Action:
        """Passes one after the other that have that to write; what is done after the last began."""
        written = 0
        action = Action(Verb.ALLOW)
        for number, rest in enumerate(rests, 1):
            at_s = (number - 1) * each_s
            action = self.progress.decide(
                Look(at_s, image, False, number, written, rest), cancelled=False
            )
            written += rest
        return action


def test_cancelled() -> None:
    action = Told().progress.decide(Look(0, 0), cancelled=True)
    assert (action.verb, action.why) == (Verb.ABORT, "it was cancelled")


@pytest.mark.parametrize(("image", "verb"), [(ROOM, Verb.ALLOW), (ROOM + 1, Verb.ABORT)])
def test_room(image: int, verb: Verb) -> None:
    action = Told().progress.decide(Look(0, image), cancelled=False)
    assert action.verb is verb
    if verb is Verb.ABORT:
        assert "beyond the 102400 MiB" in action.why
        assert "dump_max_ram_ratio" in action.why


@pytest.mark.parametrize(
    ("rests", "expected"),
    [
        pytest.param((8000,), "allow 30", id="first pass"),
        pytest.param((8000, 7000, 6000, 5000), "allow 30", id="shorter each time"),
        pytest.param((8000, 7900), "allow 30", id="stuck once"),
        pytest.param((8000, 7900, 7800), "allow 30", id="stuck twice"),
        pytest.param((8000, 7900, 7800, 7700), "pause", id="stuck three times"),
        pytest.param((8000, 7900, 7800, 7000, 6900, 6800), "allow 30", id="shorter in between"),
        pytest.param((8000, 100, 2000, 80, 2000, 60, 2000), "allow 30", id="bursts"),
    ],
)
def test_passes(rests: tuple[int, ...], expected: str) -> None:
    action = Told().passes(*(rest * MIB for rest in rests))
    assert expected == (
        f"allow {action.pause_ms}" if action.verb is Verb.ALLOW else action.verb.name.lower()
    )


@pytest.mark.parametrize(
    ("each_s", "expected_ms"),
    [(0.04, 60), (0.2, 250), (0.7, 875), (0.9, 1000), (1.0, 1000), (1.1, 30)],
)
def test_the_pause_that_the_rest_takes_is_allowed(each_s: float, expected_ms: int) -> None:
    assert Told().passes(MIB, MIB, each_s=each_s) == Action(Verb.ALLOW, expected_ms)


def test_the_allowed_pause_is_never_lowered_and_at_last_the_guest_is_paused() -> None:
    """QEMU may take itself for slower than it is."""
    told = Told()
    allowed = [30]
    for count in range(2, 12):
        action = Told().passes(*[MIB] * count, each_s=0.1)
        allowed.append(action.pause_ms)
    told.passes(MIB)
    assert allowed == [30, 125, 250, 500, 1000, 1000, 1000, 0, 0, 0, 0]
    assert Told().passes(*[MIB] * 8, each_s=0.1).verb is Verb.PAUSE


def test_no_pause_that_would_be_too_long() -> None:
    action = Told().passes(*[GIB] * 4, each_s=61)
    assert action.verb is Verb.ABORT
    assert "take about 61 s (limits.max_freeze_s is 60)" in action.why


def test_no_pause_where_the_rest_has_no_room() -> None:
    action = Told(room_bytes=7 * GIB).passes(4 * GIB, 4 * GIB, image=4 * GIB)
    assert action.verb is Verb.ABORT
    assert "outgrows" in action.why


def test_paused_early_where_another_pass_has_no_room() -> None:
    action = Told(room_bytes=8 * GIB).passes(4 * GIB, 3 * GIB, 3 * GIB, image=4 * GIB)
    assert action.verb is Verb.PAUSE


def test_nobody_is_to_be_paused_for_what_libvirt_does_after_the_last_pass() -> None:
    """It flushes the image, and makes the overlays of many disks, while the guest is paused."""
    progress = DumpProgress(LIMITS, ROOM, 0.0)
    for at_s in range(200):
        action = progress.decide(Look(at_s, GIB, True, 3, GIB, 0), cancelled=False)
        assert action.verb is Verb.ALLOW


def test_pause_by_qemu_itself_is_bounded() -> None:
    progress = DumpProgress(LIMITS, ROOM, 0.0)
    verbs = [
        progress.decide(
            Look(at_s, at_s * 10 * MIB, True, 2, at_s * 10 * MIB, 9 * GIB - at_s * 10 * MIB),
            cancelled=False,
        ).verb
        for at_s in range(70)
    ]
    assert verbs.index(Verb.ABORT) == 60


def test_image_alone_tells_of_a_stall() -> None:
    """libvirt tells nothing of the passes."""
    progress = DumpProgress(LIMITS, ROOM, 0.0)
    for at_s in range(130):
        image = min(at_s, 59) * 5 * MIB
        action = progress.decide(Look(at_s, image), cancelled=False)
        assert action.verb is (Verb.ALLOW if at_s < 120 else Verb.ABORT)
