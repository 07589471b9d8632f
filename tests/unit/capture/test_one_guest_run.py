"""Several types, several guests, and runs that are not finished."""

import math
import threading
import time
from collections.abc import Iterable

import msgspec
import pytest

from tests.fakes.capture_scene import (
    CRASH,
    MEMORY,
    OWNER,
    PAUSED,
    QUIESCED,
    RUN,
    Fault,
    Scene,
    agent_of,
    fine,
    no_dump,
    no_freeze,
    shareable,
)
from tests.fakes.guest import OTHER, UUID, FakeProcess
from zvmsnap.capture import expected_pause
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.quiesce import watchdog
from zvmsnap.zfs import marks

HOURLY, BOTH = ("hourly",), ("hourly", "daily")

TYPES = [
    pytest.param({"daily": "crash"}, HOURLY, fine, True, MEMORY, id="none for it: the default"),
    pytest.param({"": "crash"}, BOTH, fine, True, CRASH, id="of all types"),
    pytest.param({"": "crash", "daily": "paused"}, HOURLY, fine, True, CRASH, id="of another"),
    pytest.param({"": "crash", "daily": "paused"}, BOTH, fine, True, PAUSED, id="the better one"),
    pytest.param({"hourly": "quiesced", "daily": "off"}, BOTH, fine, True, QUIESCED, id="one off"),
    pytest.param({"": "off", "daily": "crash"}, BOTH, fine, True, CRASH, id="off but for one"),
    pytest.param({"": "off", "daily": "crash"}, HOURLY, fine, True, None, id="off for this one"),
    pytest.param({"hourly": "off", "daily": "off"}, BOTH, fine, True, None, id="off for each"),
    pytest.param(
        {"hourly": "quiesced,crash", "daily": "paused,crash"},
        BOTH,
        no_dump,
        True,
        QUIESCED,
        id="what the other one asked for",
    ),
    pytest.param(
        {"hourly": "quiesced", "daily": "paused"},
        BOTH,
        no_dump,
        False,
        QUIESCED,
        id="less than one asked for",
    ),
    pytest.param(
        {"hourly": "quiesced", "daily": "memory"},
        BOTH,
        shareable,
        True,
        QUIESCED,
        id="as much as it can have",
    ),
    pytest.param(
        {"hourly": "quiesced", "daily": "memory,required"},
        BOTH,
        shareable,
        False,
        None,
        id="one would rather have no point",
    ),
    pytest.param(
        {"hourly": "crash", "daily": "quiesced,required"},
        BOTH,
        no_freeze,
        False,
        None,
        id="rather none than crash",
    ),
    pytest.param({"": "paused,memory,crash"}, BOTH, fine, True, PAUSED, id="paused before memory"),
    pytest.param(
        {"hourly": "paused,memory", "daily": "memory"}, BOTH, fine, True, MEMORY, id="for both"
    ),
    pytest.param(
        {"hourly": "paused,memory", "daily": "quiesced"}, BOTH, no_dump, True, MEMORY, id="no less"
    ),
    pytest.param({"hourly": "ram", "daily": "paused"}, BOTH, fine, False, MEMORY, id="one invalid"),
    pytest.param({"hourly": "ram", "": "paused"}, ("daily",), fine, True, PAUSED, id="not asked"),
]


@pytest.mark.parametrize(("modes", "types", "fault", "complete", "level"), TYPES)
def test_types(
    scene: Scene,
    modes: dict[str, str],
    types: tuple[str, ...],
    fault: Fault,
    complete: bool,
    level: ConsistencyLevel | None,
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = modes
    fault(scene, guest)
    assert scene.pre(*types) is complete
    entry = next(iter(scene.entries()), None)
    assert (entry and entry.level) == level
    scene.assert_at_rest(but=entry)
    # Once for all types.
    assert scene.trace.count("> frozen") == (level in (MEMORY, PAUSED, QUIESCED))


@pytest.mark.parametrize(
    ("keys", "types", "level"),
    [
        pytest.param({"mode": "quiesced"}, HOURLY, QUIESCED, id="for all"),
        pytest.param({"mode": "paused,memory,crash"}, HOURLY, PAUSED, id="paused before memory"),
        pytest.param({"modes": {"hourly": "crash"}}, HOURLY, CRASH, id="for this one"),
        pytest.param({"modes": {"daily": "crash"}}, HOURLY, MEMORY, id="for another"),
        pytest.param({"mode": "crash", "modes": {"daily": "paused"}}, BOTH, PAUSED, id="best"),
    ],
)
def test_the_configuration_says(
    scene: Scene, keys: dict[str, object], types: tuple[str, ...], level: ConsistencyLevel
) -> None:
    scene.add()
    scene.change(**keys)
    assert scene.pre(*types)
    assert [entry.level for entry in scene.entries()] == [level]


def test_an_invalid_property_is_told_and_the_configuration_counts(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": "ram"}
    scene.change(mode="quiesced,crash", modes={"daily": "memory"})
    assert not scene.pre()
    assert [entry.level for entry in scene.entries()] == [QUIESCED]
    said = caplog.text
    assert "web (tank/web): tank/web: zvmsnap:mode 'ram': 'ram' is no level" in said
    assert "until that is mended: quiesced,crash" in said


@pytest.mark.parametrize(
    ("first", "second", "line", "later"),
    [
        pytest.param("memory", "paused", "snapshot", "> staging", id="memory, paused"),
        pytest.param("memory", "quiesced", "snapshot", "freeze", id="memory, quiesced"),
        pytest.param("paused", "quiesced", "snapshot", "freeze", id="paused, quiesced"),
        pytest.param("crash", "quiesced", "> definition", "freeze", id="crash, quiesced"),
    ],
)
@pytest.mark.parametrize("names", [("db", "web"), ("web", "db")])
def test_guests_are_held_last(
    scene: Scene, first: str, second: str, line: str, later: str, names: tuple[str, str]
) -> None:
    for name, uuid, mode in zip(names, (UUID, OTHER), (first, second), strict=True):
        scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": f"{mode},required"}
    scene.when[f"{names[0]} {line}"] = lambda: time.sleep(0.1)
    assert scene.pre()
    done = f"{names[0]} > {'waiting' if first == 'crash' else 'frozen'}"
    assert scene.trace.index(done) < scene.trace.index(f"{names[1]} {later}")


def test_guests_are_frozen_at_one_time(scene: Scene) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "quiesced"}
    scene.when["web > definition"] = lambda: time.sleep(0.1)
    assert scene.pre()
    assert {entry.level for entry in scene.entries()} == {QUIESCED}
    # db came first, and waited.
    assert scene.trace.index("web > barrier") < scene.trace.index("db > freeze")


def test_no_freeze_lasts_as_long_as_the_program_of_another_guest(scene: Scene) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "quiesced"}
    scene.script("pre-freeze", "sleep 0.1; date +%s.%N > ran")
    at: list[float] = []
    scene.when["db freeze"] = lambda: at.append(time.time())
    assert scene.pre()
    assert {entry.level for entry in scene.entries()} == {QUIESCED}
    assert float((scene.root / "ran").read_text()) < at[0]


def test_no_ram_is_dumped_while_another_guest_is_frozen(scene: Scene) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        guest = scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "quiesced,memory,paused,crash"}
    no_freeze(scene, guest)
    assert scene.pre()
    web, db = sorted(scene.entries(), key=lambda entry: entry.domain, reverse=True)
    assert (web.level, db.level) == (QUIESCED, CRASH)
    assert db.reason and db.reason.endswith(
        "freeze: hook failed; no RAM is dumped while other guests of this run are held"
    )
    assert "db snapshot" not in scene.trace


@pytest.mark.parametrize(
    ("mode", "level"),
    [("paused,memory", CRASH), ("paused,memory,crash", CRASH), ("paused,memory,required", None)],
)
def test_no_ram_is_dumped_again_while_another_guest_is_paused(
    scene: Scene, mode: str, level: ConsistencyLevel | None
) -> None:
    """Its dump failed, and the other's did not: that one would be paused for a second dump."""
    scene.change(limits=Limits(parallel_dumps=2))
    web, _ = scene.add("web", UUID), scene.add("db", OTHER)
    scene.modes = {"tank/web": {"": mode}, "tank/db": {"": "paused"}}
    is_held = threading.Event()
    scene.when["db > frozen"] = is_held.set

    def fail_when_the_other_is_held() -> None:
        assert is_held.wait(60)
        time.sleep(0.1)
        raise LibvirtFailed("no dump")

    web.at["snapshot"] = fail_when_the_other_is_held
    assert scene.pre() is (mode == "paused,memory,crash")
    levels = {entry.domain: entry.level for entry in scene.entries()}
    assert levels == {"db": PAUSED} | ({"web": level} if level else {})
    assert scene.trace.count("web snapshot") == 1
    if level:
        (reason,) = (entry.reason for entry in scene.entries() if entry.domain == "web")
        assert reason == ("dump: no dump; no RAM is dumped while other guests of this run are held")


def test_guests_that_stand_still_together_are_dumped_together(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few CPUs the host has: the first one would stand still for the dump of the second."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = threading.Barrier(2)
    for name, uuid in (("web", UUID), ("db", OTHER)):
        guest = scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "paused"}
        guest.at["snapshot"] = lambda: void(both.wait(60))
    assert scene.pre()
    assert [entry.level for entry in scene.entries()] == [PAUSED, PAUSED]
    assert {entry.original_speed_mib for entry in scene.entries()} == {None}


def void(_result: object) -> None:
    pass


@pytest.mark.parametrize(
    ("mode", "level", "complete"),
    [
        pytest.param("paused,memory,crash", MEMORY, True, id="it may have overlays"),
        pytest.param("paused,crash", CRASH, True, id="only less"),
        pytest.param("paused,required", None, False, id="nothing else"),
    ],
)
def test_a_guest_for_which_others_would_stand_still_for_long(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    level: ConsistencyLevel | None,
    complete: bool,
) -> None:
    """The largest one gets its next level, before any other stands still."""
    scene.change(limits=Limits(parallel_dumps=1))
    monkeypatch.setattr(expected_pause, "dump_bytes_per_s", lambda *_: 1.0)
    sizes_kib = {"web": 1024, "db": 512}
    for name, uuid in (("web", UUID), ("db", OTHER)):
        guest = scene.add(name, uuid)
        assert guest.qemu
        assert isinstance(guest.qemu, FakeProcess)
        guest.qemu.used_bytes = sizes_kib[name] << 10
        scene.modes[f"tank/{name}"] = {"": mode}
    assert scene.pre() is complete
    levels = {entry.domain: entry.level for entry in scene.entries()}
    assert levels == {"db": PAUSED} | ({"web": level} if level else {})
    if level:
        (reason,) = (entry.reason for entry in scene.entries() if entry.domain == "web")
        assert reason and reason.startswith("2 guests would be paused together, and 1 are dumped")
        done = f"web > {'waiting' if level is CRASH else 'frozen'}"
        assert scene.trace.index(done) < scene.trace.index("db snapshot")


@pytest.mark.parametrize(("mode", "holds"), [("paused", "snapshot"), ("quiesced", "freeze")])
def test_what_is_asked_while_a_guest_is_held_was_asked_before(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str, holds: str
) -> None:
    """So libzfs_core is loaded by then, which takes longer."""
    scene.add()
    scene.modes["tank/web"] = {"": mode}
    was_held: list[bool] = []

    def existing(names: Iterable[str]) -> list[str]:
        was_held.append(holds in scene.trace)
        return []

    monkeypatch.setattr(marks, "existing", existing)
    assert scene.pre()
    assert was_held == [False, True]


@pytest.mark.parametrize(("mode", "waits"), [("paused", [(True, False)]), ("memory", [])])
def test_ram_is_dumped_when_the_watchdog_follows_the_guest(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str, waits: list[tuple[bool, bool]]
) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": mode}
    waited: list[tuple[bool, bool]] = []

    def wait(config: Config, entry: Entry, cancelled: threading.Event) -> None:
        waited.append((entry.paused, "snapshot" in scene.trace))

    monkeypatch.setattr(watchdog, "wait_until_followed", wait)
    assert scene.pre()
    assert waited == waits
    assert "snapshot" in scene.trace


def test_memory_of_all_guests_if_none_can_be_paused(scene: Scene) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "paused,memory,required"}
    scene.has_watchdog = False
    assert scene.pre()
    assert [entry.level for entry in scene.entries()] == [MEMORY, MEMORY]
    assert {entry.reason for entry in scene.entries()} == {"no watchdog runs"}


def test_a_guest_that_fails_keeps_no_other(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.change(limits=Limits(lock_timeout_s=0.05))
    for name, uuid in (("web", UUID), ("db", OTHER)):
        scene.add(name, uuid)
        scene.modes[f"tank/{name}"] = {"": "quiesced"}
    with lock(scene.config.locks_dir, UUID, "restore web", 1):
        assert not scene.pre()
    assert [(entry.domain, entry.level) for entry in scene.entries()] == [("db", QUIESCED)]
    assert "web (tank/web,tank/db): no point: waited 0.05 s" in caplog.text


@pytest.mark.parametrize("mode", ["memory", "paused", "quiesced", "crash"])
def test_the_last_run_is_finished_first(scene: Scene, mode: str) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre()
    (first,) = scene.entries()
    done = len(scene.trace)
    assert scene.pre()
    (second,) = scene.entries()
    assert (second.level, second.capture == first.capture) == (first.level, False)
    scene.assert_at_rest(but=second)
    released = {"memory": "pivot vda", "paused": "resume", "quiesced": "thaw", "crash": "> close"}
    assert released[mode] in scene.trace[done : scene.trace.index("> staging", done)]
    after_snapshot.finish_interrupted(scene.config, scene.host, guest, second)
    scene.assert_at_rest()


def test_a_run_of_another_sanoid_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene.change(limits=Limits(lock_timeout_s=0.05))
    guest = scene.add()
    scene.modes["tank/web"] = {"": "quiesced"}
    assert scene.pre()
    monkeypatch.setattr(Process, "is_alive", lambda process: True)
    monkeypatch.setattr("tests.fakes.capture_scene.OWNER", msgspec.structs.replace(OWNER, pid=1))
    done = scene.trace[:]
    assert not scene.pre()
    # Its snapshot is noted, and nothing is done to the guest (tests/scenarios/test_late_runs).
    assert (scene.trace, agent_of(guest).frozen) == ([*done, "> waiting"], True)
    assert f"run {RUN} of tank/web is under way (sanoid has pid {OWNER.pid})" in caplog.text


@pytest.mark.parametrize(
    ("post_within_s", "mode", "begins"),
    [
        pytest.param(math.inf, "memory", ["start watchdog", "> staging"], id="sanoid's"),
        pytest.param(0, "memory", ["> staging"], id="a script's, which may not call post"),
        pytest.param(
            math.inf,
            "paused",
            ["start watchdog", "require watchdog", "> staging"],
            id="sanoid's, paused",
        ),
        pytest.param(0, "paused", ["require watchdog", "> staging"], id="a script's, paused"),
    ],
)
def test_watchdog(scene: Scene, post_within_s: float, mode: str, begins: list[str]) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre(post_within_s=post_within_s)
    assert scene.trace[: len(begins)] == begins


@pytest.mark.parametrize(
    ("mode", "call"), [("memory", "snapshot"), ("paused", "snapshot"), ("quiesced", "freeze")]
)
def test_guest_that_vanishes_meanwhile(scene: Scene, mode: str, call: str) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": f"{mode},crash"}

    def vanish() -> None:
        guest.exists = False

    guest.at[call] = vanish
    assert not scene.pre()
    # Its entry stays open, for the next hook.
    (entry,) = scene.entries()
    after_snapshot.finish_entry(scene.config, scene.host, entry)
    assert scene.entries() == []
