import pytest

from tests.fakes.capture_scene import (
    CRASH,
    MEMORY,
    PAUSED,
    QUIESCED,
    WHOLE,
    Fault,
    Scene,
    busy_meanwhile,
    disconnected,
    fine,
    forbidden,
    full,
    half_an_image,
    has_old_overlay,
    keeps_old_overlay,
    no_channel,
    no_definition,
    no_dump,
    no_file_system,
    no_freeze,
    no_overlay,
    no_watchdog,
    pre_freeze_fails,
    refused,
    shareable,
    silent,
    sparse,
    thaws_alone,
    thaws_under_the_overlay,
    too_busy,
)
from zvmsnap.capture import one_guest
from zvmsnap.config.level import ConsistencyLevel


def test_every_level_can_be_reached() -> None:
    assert set(one_guest.LEVELS) == set(ConsistencyLevel)


@pytest.mark.parametrize(
    ("mode", "change", "level", "trace"),
    [pytest.param(*case, id=name) for name, *case in WHOLE],
)
def test_steps_of_each_level(
    scene: Scene, mode: str, change: Fault, level: ConsistencyLevel, trace: list[str]
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": f"{mode},required"}
    change(scene, guest)
    assert scene.pre()
    assert scene.trace == trace
    (entry,) = scene.entries()
    assert (entry.level, entry.step) == (level, trace[-1].removeprefix("> "))
    assert entry.reason == ("the guest is shut off" if level is ConsistencyLevel.OFFLINE else None)
    scene.assert_at_rest(but=entry)
    assert entry.paused is (level is PAUSED)
    with_overlay = level is MEMORY or "> overlay" in trace
    assert entry.frozen is (level is QUIESCED and not with_overlay)
    assert (guest.live["vda"] == entry.disks[0].overlay) is with_overlay
    assert bool(entry.disks_frozen_at_s) is (level.has_memory or level.holds_guest)
    assert bool(entry.held_since_s) is level.holds_guest
    assert bool(entry.pause_s) is with_overlay
    assert bool(entry.memory_format) is level.has_memory
    assert (round(entry.pause_parts.ram_s, 2) == 0.06) is level.has_memory
    assert bool(entry.pause_parts.freeze_s) is (level is QUIESCED)
    assert level is MEMORY or bool(entry.pause_parts.overlays_s) is with_overlay
    assert entry.minimum_level == (None if level is ConsistencyLevel.OFFLINE else level)


SPARSE = "qemu.conf says sparse"
SHAREABLE = "a disk cannot be frozen: vda is shareable"
ABORTED = "dump: aborted"
HELD = "web: its QEMU has "
PARTIAL = "read header: "
THAWED = "frozen: its file systems thawed before the snapshot could be taken"

REACHED = [
    pytest.param("memory", no_dump, False, CRASH, "dump: no dump", id="no dump"),
    pytest.param("memory", refused, True, CRASH, "dump: cannot migrate", id="libvirt refuses"),
    pytest.param("paused", refused, True, CRASH, "dump: cannot migrate", id="refuses paused"),
    pytest.param("memory,required", refused, False, None, None, id="libvirt refuses what must be"),
    pytest.param(
        "memory", busy_meanwhile, False, CRASH, "dump: cannot migrate", id="somebody's block job"
    ),
    pytest.param("memory", half_an_image, False, CRASH, "read header: ", id="half an image"),
    pytest.param("paused", half_an_image, False, CRASH, "dump: ", id="paused, half an image"),
    pytest.param("memory", sparse, False, CRASH, SPARSE, id="no image could be loaded"),
    pytest.param("memory", has_old_overlay, True, MEMORY, None, id="QEMU closes old overlays"),
    pytest.param("memory", keeps_old_overlay, False, CRASH, HELD, id="QEMU keeps old overlays"),
    pytest.param("paused", keeps_old_overlay, False, CRASH, HELD, id="paused, QEMU keeps them"),
    pytest.param("memory", full, False, CRASH, "staging ", id="staging is full"),
    pytest.param("memory", shareable, True, CRASH, SHAREABLE, id="cannot have more"),
    pytest.param("memory,paused", shareable, True, PAUSED, SHAREABLE, id="can have the second"),
    pytest.param("memory,paused", sparse, False, CRASH, SPARSE, id="neither, for the same reason"),
    pytest.param("memory,quiesced", no_dump, True, QUIESCED, "dump: no dump", id="the second"),
    pytest.param("memory,crash", no_dump, True, CRASH, "dump: no dump", id="crash is enough"),
    pytest.param(
        "memory,paused",
        too_busy,
        False,
        CRASH,
        f"{ABORTED}; its RAM could not be written in time",
        id="RAM changes too fast: not twice",
    ),
    pytest.param("memory,quiesced,crash", too_busy, True, QUIESCED, ABORTED, id="but without RAM"),
    pytest.param("paused", no_dump, False, CRASH, "dump: no dump", id="paused, no dump"),
    pytest.param(
        "paused,memory",
        no_watchdog,
        True,
        MEMORY,
        "no watchdog runs",
        id="paused, memory needs none",
    ),
    pytest.param(
        "paused,memory,required",
        no_watchdog,
        True,
        MEMORY,
        "no watchdog runs",
        id="paused, memory is as good where one of them must be",
    ),
    pytest.param("paused,memory", fine, True, PAUSED, None, id="paused before memory"),
    pytest.param("paused,memory,crash", fine, True, PAUSED, None, id="paused before all"),
    pytest.param("paused,memory,required", fine, True, PAUSED, None, id="paused, required"),
    pytest.param("paused,memory", no_dump, True, MEMORY, "dump: no dump", id="memory after paused"),
    pytest.param(
        "paused,memory,crash",
        too_busy,
        True,
        CRASH,
        f"{ABORTED}; its RAM could not be written in time",
        id="RAM is not dumped twice for memory either",
    ),
    pytest.param(
        "paused,memory,required",
        too_busy,
        False,
        None,
        None,
        id="RAM is not dumped twice, and no less will do",
    ),
    pytest.param("paused,memory", sparse, False, CRASH, SPARSE, id="neither for one reason"),
    pytest.param("paused", no_watchdog, False, CRASH, "no watchdog runs", id="paused, no watchdog"),
    pytest.param(
        "quiesced", no_watchdog, False, CRASH, "barrier: no watchdog runs", id="no watchdog"
    ),
    pytest.param("memory", no_watchdog, True, MEMORY, None, id="memory needs no watchdog"),
    pytest.param("quiesced", no_channel, True, CRASH, "it has no channel", id="no channel"),
    pytest.param(
        "quiesced", disconnected, True, CRASH, "its agent is not connected", id="no agent"
    ),
    pytest.param(
        "quiesced", silent, False, CRASH, "its agent does not answer: ", id="silent agent"
    ),
    pytest.param(
        "quiesced",
        forbidden,
        False,
        CRASH,
        "its agent does not allow guest-fsfreeze-freeze",
        id="freeze is forbidden",
    ),
    pytest.param("quiesced", no_freeze, False, CRASH, "freeze: hook failed", id="freeze fails"),
    pytest.param(
        "quiesced,paused", no_freeze, True, PAUSED, "freeze: hook failed", id="paused after that"
    ),
    pytest.param(
        "quiesced",
        no_file_system,
        False,
        CRASH,
        "freeze: its agent found no file system to freeze",
        id="nothing to freeze",
    ),
    pytest.param("quiesced", thaws_alone, False, CRASH, THAWED, id="thaws by itself"),
    pytest.param("quiesced", pre_freeze_fails, False, CRASH, "pre-freeze: ", id="pre-freeze fails"),
    pytest.param("quiesced", no_overlay, False, CRASH, "overlay: no overlay", id="no overlay"),
    pytest.param(
        "quiesced",
        thaws_under_the_overlay,
        False,
        CRASH,
        "thaw: its file systems thawed before",
        id="thaws while its overlays are made",
    ),
    pytest.param("memory,required", shareable, False, None, None, id="cannot have what must be"),
    pytest.param("quiesced,required", silent, False, None, None, id="failed, what must be"),
    pytest.param("memory,quiesced,required", no_dump, True, QUIESCED, "dump: ", id="second of two"),
    pytest.param("crash,required", silent, True, CRASH, None, id="crash must be"),
    pytest.param("memory,crash", no_definition, False, None, None, id="nothing at all"),
    pytest.param("ram", fine, False, MEMORY, None, id="no such level: the default"),
    pytest.param("memory,memory", no_dump, False, CRASH, "dump: no dump", id="nor the default"),
    pytest.param("off", fine, True, None, None, id="left out"),
]


@pytest.mark.parametrize(("mode", "fault", "complete", "level", "reason"), REACHED)
def test_reached(
    scene: Scene,
    mode: str,
    fault: Fault,
    complete: bool,
    level: ConsistencyLevel | None,
    reason: str | None,
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    fault(scene, guest)
    assert scene.pre() is complete
    entry = next(iter(scene.entries()), None)
    assert (entry and entry.level) == level
    scene.assert_at_rest(but=entry)
    if entry:
        assert (entry.reason or "").startswith(reason or "")
        assert bool(entry.reason) is bool(reason)
