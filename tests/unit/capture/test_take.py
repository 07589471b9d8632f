import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.take_scene import DB, WEB, Pool, configure, two_guests
from zvmsnap.capture import take
from zvmsnap.common import waiting
from zvmsnap.common.errors import GuestNotFound, LibvirtFailed, TakeFailed, TakeRefused, ZfsFailed
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.points import vault
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.quiesce import snapshot_watch, thaw
from zvmsnap.zfs import marks, zfs
from zvmsnap.zfs.types import Dataset, Snapshot, SnapshotUsage

NAME = "before-upgrade"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    fake = Pool(tmp_path)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def host(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return two_guests(tmp_path, config, monkeypatch)


@pytest.fixture
def web(host: FakeHost) -> FakeGuest:
    return host.known[0]


@pytest.fixture
def db(host: FakeHost) -> FakeGuest:
    return host.known[1]


def both(config: Config, host: FakeHost, hold: str | None = None) -> list[RestorePoint]:
    planned = take.plan(host, ["web", "db"], None, NAME)
    return take.execute(config, planned, hold, threading.Event())


def assert_at_rest(config: Config, *guests: FakeGuest) -> None:
    assert Journal(config.journal_dir).entries() == []
    assert list(config.staging_dir.iterdir()) == []
    for guest in guests:
        assert guest.live["vda"].endswith("/a.raw")


def test_two_guests_at_one_instant(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest, db: FakeGuest
) -> None:
    points = both(config, host, hold="audit")
    assert sorted(point.name for point in points) == [f"db@{NAME}", f"web@{NAME}"]
    assert {point.manifest.level for point in points} == {ConsistencyLevel.PAUSED}
    assert sorted(pool.present) == [f"{DB}@{NAME}", f"{WEB}@{NAME}"]
    assert pool.changes == [f"hold audit ['{DB}@{NAME}', '{WEB}@{NAME}']"]
    for point in points:
        assert Liveness(pool.present.values(), {"tank": 70}).complete_names(point.manifest) == [
            NAME
        ]
    assert_at_rest(config, web, db)


def test_one_guest_fails_and_none_has_a_point(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest, db: FakeGuest
) -> None:
    def fail() -> None:
        raise ZfsFailed("no")

    db.at["snapshot"] = fail
    with pytest.raises(TakeFailed, match="not every guest got what its disks allow"):
        both(config, host)
    assert pool.present == {} and vault.read(config) == ([], [])
    assert_at_rest(config, web, db)
    # Nothing is in the way of the next one.
    assert len(both(config, host)) == 2


def test_a_snapshot_fails_and_none_stays(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest, db: FakeGuest
) -> None:
    pool.fails_after = 1
    with pytest.raises(TakeFailed, match="out of space"):
        both(config, host)
    assert pool.present == {}
    assert vault.read(config) == ([], [])
    assert_at_rest(config, web, db)


def test_interrupted(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest, db: FakeGuest
) -> None:
    cancelled = threading.Event()
    web.at["snapshot"] = cancelled.set
    planned = take.plan(host, ["web", "db"], None, NAME)
    with pytest.raises(Exception, match="interrupted"):
        take.execute(config, planned, None, cancelled)
    assert pool.present == {}
    assert_at_rest(config, web, db)


def test_a_guest_that_is_off(pool: Pool, config: Config, host: FakeHost, db: FakeGuest
                             ) -> None:  # fmt: skip
    db.active = False
    assert {point.manifest.level for point in both(config, host)} == {
        ConsistencyLevel.PAUSED,
        ConsistencyLevel.OFFLINE,
    }


REFUSED = [
    pytest.param(["nix"], NAME, GuestNotFound, "nix: libvirt has no such guest", id="no guest"),
    pytest.param(["web"], "a/b", TakeRefused, "is no name of a snapshot", id="no name"),
    pytest.param(["web"], "n" * 247, TakeRefused, "256 characters long, and ZFS", id="too long"),
    pytest.param(["web"], "old", TakeRefused, "tank/web@old: exists", id="name is taken"),
    pytest.param(["db"], NAME, TakeRefused, "db: has no disk on ZFS, or all", id="left out"),
]


@pytest.mark.parametrize(("domains", "name", "kind", "why"), REFUSED)
def test_refused(
    pool: Pool, host: FakeHost, domains: list[str], name: str, kind: type, why: str
) -> None:
    pool.present[f"{WEB}@old"] = Snapshot(WEB, "old", 1, 1)
    pool.datasets[DB] = Dataset(DB, "filesystem", False, mode="off")
    with pytest.raises(kind, match=why):
        take.plan(host, domains, None, name)


def test_snapshots_of_another_take_stay(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest
) -> None:
    """Two of them in one second make up the same name."""
    planned = take.plan(host, ["web", "db"], None, NAME)
    pool.present[f"{WEB}@{NAME}"] = Snapshot(WEB, NAME, 99, 1)
    web.at["snapshot"] = lambda: (_ for _ in ()).throw(LibvirtFailed("no dump"))
    with pytest.raises(TakeFailed, match="not every guest"):
        take.execute(config, planned, None, threading.Event())
    pool.fails_after = 0
    with pytest.raises(TakeFailed, match="out of space"):
        take.execute(config, planned, None, threading.Event())
    assert f"{WEB}@{NAME}" in pool.present


@pytest.fixture
def vault_is_missing(config: Config) -> None:
    vault.claim(config)
    (config.vault_dir / vault.MARK).unlink()


@pytest.mark.usefixtures("vault_is_missing")
def test_points_that_wait_for_the_vault(pool: Pool, config: Config, host: FakeHost) -> None:
    planned = take.plan(host, ["web", "db"], None, NAME)
    with pytest.raises(TakeFailed, match="its snapshots exist"):
        take.execute(config, planned, "audit", threading.Event())
    assert pool.changes == [f"hold audit ['{DB}@{NAME}', '{WEB}@{NAME}']"]
    assert len(pool.present) == len(Journal(config.journal_dir).entries()) == 2


def test_one_is_resumed_before_the_snapshots(pool: Pool, config: Config, host: FakeHost) -> None:
    """Its RAM was dumped in a second; that of the other one took longer than max_freeze_s."""
    web = host.known[0]

    def resume() -> None:
        for entry in Journal(config.journal_dir).entries():
            if entry.uuid == web.uuid:
                assert thaw.resume_or_thaw_unlocked(web, entry) == "paused"

    pool.when_taken = resume
    planned = take.plan(host, ["web", "db"], None, NAME, "paused")
    with pytest.raises(TakeFailed, match="web: it went on before its snapshot"):
        take.execute(config, planned, None, threading.Event())
    assert (pool.present, vault.read(config)[0]) == ({}, [])
    assert Journal(config.journal_dir).entries() == []


def test_group(pool: Pool, host: FakeHost) -> None:
    pool.groups = {WEB: "shop", DB: "else"}
    assert take.plan(host, [], "shop", NAME).domains == ("web",)
    pool.groups[DB] = "shop"
    assert take.plan(host, [], "shop", NAME).domains == ("db", "web")
    with pytest.raises(TakeRefused, match="zvmsnap:group=nix"):
        take.plan(host, [], "nix", NAME)


@pytest.fixture
def run(
    host: FakeHost,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    configure(tmp_path, config, monkeypatch)
    return command


Run = Callable[..., tuple[int, str, str]]


def test_commands(run: Run, pool: Pool) -> None:
    code, out, _ = run("take", "--dry-run", "web", "--name", NAME)
    assert (code, out) == (0, f"would take {NAME} of web:\n  {WEB}\n")
    assert pool.present == {}
    code, out, _ = run("take", "--json", "web", "--name", NAME)
    assert code == 0
    (point,) = json.loads(out)["points"]
    assert (point["name"], point["level"]) == (f"web@{NAME}", "paused")
    assert point["pause_s"] > 0
    assert run("take", "db")[1].startswith("db@zvmsnap_2")
    assert run("take")[0] == 2 and run("take", "--group", "x", "web")[0] == 2

    code, out, _ = run("drop", "--dry-run", f"web@{NAME}")
    assert (code, out) == (0, f"drop web@{NAME}:\n  destroy {WEB}@{NAME}\n")
    assert run("drop", f"web@{NAME}")[0] == 2  # nobody to ask
    assert run("drop", "--yes", f"web@{NAME}")[0] == 0
    assert f"{WEB}@{NAME}" not in pool.present
    assert run("list", "web")[1] == "no points of web\n"


def test_says_what_it_took(run: Run, pool: Pool) -> None:
    assert run("take", "db", "--name", "x")[0] == 0
    # Not what an earlier one of that name took.
    out = run("take", "web", "--name", "x")[1]
    assert re.fullmatch(r"web@x: paused, stood still for \d+\.\d\d s\n", out)
    # Of which sanoid would say that daily is its type.
    assert run("take", "web", "--name", "before_daily")[1].startswith("web@before: paused, ")


def test_what_a_point_of_another_version_may_need_is_not_dropped(
    run: Run, pool: Pool, config: Config
) -> None:
    run("take", "web", "--name", NAME)
    manifest = config.vault_dir / "db" / NAME / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"schema": 3}')
    code, _, err = run("drop", "--yes", f"web@{NAME}")
    assert code == 1
    assert f"may need the same snapshots cannot be read: {manifest}: schema 3" in err
    numbered = manifest.parent.rename(config.vault_dir / "db" / f"{NAME}.2")
    assert run("drop", "--yes", f"web@{NAME}")[0] == 1
    assert list(pool.present) == [f"{WEB}@{NAME}"]
    numbered.rename(config.vault_dir / "db" / "another run")
    assert run("drop", "--yes", f"web@{NAME}")[0] == 0


def test_what_is_not_dropped(run: Run, pool: Pool) -> None:
    run("take", "web", "--name", NAME)
    full_name = f"{WEB}@{NAME}"
    for use, why in (
        (SnapshotUsage(pool.present[full_name], ("tank/look",), 0), "tank/look depends on it"),
        (SnapshotUsage(pool.present[full_name], (), 1), "is held"),
    ):
        pool.usage[full_name] = use
        code, _, err = run("drop", "--yes", f"web@{NAME}")
        assert code == 1 and why in err
    run("take", "web", "--name", "autosnap_2026-11-20_03:00:00_hourly")
    code, _, err = run("drop", "--yes", "web@autosnap_2026-11-20_03:00:00_hourly")
    assert code == 1 and "is sanoid's" in err
    assert len(pool.present) == 2


@pytest.mark.parametrize(
    ("mode", "level", "is_held"),
    [
        pytest.param("memory", ConsistencyLevel.PAUSED, True, id="memory: paused together"),
        pytest.param("quiesced", ConsistencyLevel.QUIESCED, True, id="frozen together"),
        pytest.param("crash", ConsistencyLevel.CRASH, False, id="as they are"),
    ],
)
@pytest.mark.parametrize("overlay", [False, True])
def test_several_guests_are_held_at_the_instant_of_the_snapshots(
    pool: Pool,
    config: Config,
    host: FakeHost,
    web: FakeGuest,
    db: FakeGuest,
    mode: str,
    level: ConsistencyLevel,
    is_held: bool,
    overlay: bool,
) -> None:
    config = msgspec.structs.replace(config, quiesce_overlay=overlay)
    web.agent, db.agent = FakeAgent(), FakeAgent()
    held: list[bool] = []

    def look() -> None:
        for guest in (web, db):
            assert guest.agent
            assert guest.live["vda"].endswith("/a.raw")
            held.append(bool(guest.paused_because) or guest.agent.frozen)

    pool.when_taken = look
    planned = take.plan(host, ["web", "db"], None, NAME, f"{mode},required")
    points = take.execute(config, planned, None, threading.Event())
    assert held == [is_held, is_held]
    assert [point.manifest.level for point in points] == [level, level]
    assert_at_rest(config, web, db)


def test_one_guest_alone_may_be_thawed_at_once(
    pool: Pool, config: Config, host: FakeHost, web: FakeGuest
) -> None:
    config = msgspec.structs.replace(config, quiesce_overlay=True)
    web.agent = FakeAgent()
    frozen: list[bool] = []
    pool.when_taken = lambda: frozen.append(web.agent is not None and web.agent.frozen)
    planned = take.plan(host, ["web"], None, NAME, "quiesced")
    (point,) = take.execute(config, planned, None, threading.Event())
    assert (frozen, point.manifest.level) == ([False], ConsistencyLevel.QUIESCED)
    assert_at_rest(config, web)


MODES = [
    pytest.param([], {}, "", 0, "paused", id="the default, without overlays"),
    pytest.param([], {"manual": "memory,required"}, "", 0, "paused", id="RAM that fits its disks"),
    pytest.param(["--mode", "memory"], {}, "", 0, "memory", id="overlays"),
    pytest.param([], {"manual": "crash"}, "", 0, "crash", id="the property of snapshots by hand"),
    pytest.param([], {"daily": "crash"}, "", 0, "paused", id="the property of others"),
    pytest.param(["--mode", "crash"], {}, "", 0, "crash", id="as it was asked for"),
    pytest.param(["--mode", "paused"], {"manual": "crash"}, "", 0, "paused", id="instead of that"),
    pytest.param(["--mode", "paused,memory"], {}, "", 0, "paused", id="paused before memory"),
    pytest.param(["--mode", "quiesced,crash"], {}, "", 0, "crash", id="the second"),
    pytest.param(["--mode", "quiesced,required"], {}, "no point, as less", 1, "", id="required"),
    pytest.param([], {"manual": "ram"}, "until that is mended: memory", 1, "", id="no such level"),
    pytest.param(["--mode", "ram"], {}, "'ram': 'ram' is no level", 2, "", id="nor one to ask for"),
    pytest.param(["--mode", "off"], {}, "'off': 'off' is no level", 2, "", id="off"),
    pytest.param([], {"manual": "off"}, "all are left out (zvmsnap:mode)", 1, "", id="left out"),
    pytest.param(
        ["--mode", "crash"],
        {"manual": "off"},
        "all are left out",
        1,
        "",
        id="left out all the same",
    ),
]


@pytest.mark.parametrize(("options", "modes", "says", "exit_code", "level"), MODES)
def test_mode(
    run: Run,
    pool: Pool,
    config: Config,
    web: FakeGuest,
    options: list[str],
    modes: dict[str, str],
    says: str,
    exit_code: int,
    level: str,
) -> None:
    pool.datasets[WEB] = Dataset(WEB, "filesystem", False, modes=modes)
    code, out, err = run("take", "web", "--name", NAME, *options)
    assert code == exit_code
    assert says in err
    assert re.sub(r", stood still for \d.*", "", out) == (f"web@{NAME}: {level}\n" if level else "")
    assert list(pool.present) == ([f"{WEB}@{NAME}"] if level else [])
    assert_at_rest(config, web)


def test_the_watchdog_lets_them_go_on_when_the_last_pool_has_its_snapshot(
    pool: Pool,
    config: Config,
    host: FakeHost,
    web: FakeGuest,
    db: FakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of a group while another pool has none yet, but both before `finish`."""
    monkeypatch.setattr(marks, "seems_to_exist", lambda name: name in pool.present)
    monkeypatch.setattr(take, "_GO_ON_WITHIN_S", 60.0)
    of_both = pool._take
    seen: list[bool] = []

    def one_after_the_other(datasets: tuple[str, ...], name: str) -> None:
        for dataset in datasets:
            threading.Event().wait(0.1)
            seen.append(bool(web.paused_because and db.paused_because))
            of_both((dataset,), name)

    monkeypatch.setattr(zfs, "take_snapshots", one_after_the_other)
    finish = after_snapshot.finish_run

    def finished(call: HookCall, config: Config, owner: Process) -> bool:
        seen.append(not web.paused_because and not db.paused_because)
        return finish(call, config, owner)

    monkeypatch.setattr(after_snapshot, "finish_run", finished)
    with snapshot_watch.watch_snapshots(config, Process.of(os.getpid())):
        points = both(config, host)
    assert seen == [True, True, True]
    assert {point.manifest.level for point in points} == {ConsistencyLevel.PAUSED}
    assert web.calls.count("resume") == db.calls.count("resume") == 1


@pytest.mark.parametrize(("took_s", "is_said"), [(0.2, False), (7.5, True)])
def test_says_that_it_waited_for_zfs(
    pool: Pool,
    config: Config,
    host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    took_s: float,
    is_said: bool,
) -> None:
    pool.when_taken = lambda: waiting.sleep(took_s)
    both(config, host)
    said = "web, db stood still for the 7.5 s that ZFS took for the snapshots"
    assert (said in caplog.text) is is_said
