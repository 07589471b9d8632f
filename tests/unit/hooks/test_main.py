import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import zvmsnap
from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.process import Process
from zvmsnap.common.signals import STOP_SIGNALS
from zvmsnap.config.settings import Config
from zvmsnap.hooks import callers, main
from zvmsnap.hooks.callers import Caller
from zvmsnap.hooks.rehearsal import Rehearsal
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.journal.round import Round
from zvmsnap.notify import event, notices
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.zfs import mounts

ROOT = Path(zvmsnap.__file__).parents[1]
ENVIRONMENT = {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": "autosnap_x_hourly"}


@pytest.fixture
def settings(tmp_path: Path, config: Config) -> Mapping[str, str]:
    """An environment in which every hook uses the directories of the test."""
    path = tmp_path / "config.toml"
    path.write_text(
        f"staging = '{config.staging}'\nvault = '{config.vault}'\n"
        f"journal = '{config.journal}'\nlocks = '{config.locks}'\nuri = 'test:///none'\n"
    )
    return {"ZVMSNAP_CONFIG": str(path), "PATH": str(tmp_path)}


def call(
    command: tuple[str | Path, ...], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


USAGE = [
    pytest.param((), "usage: zvmsnap hook pre|post|prune, not 'nothing'", id="none"),
    pytest.param(("snapshot",), "not 'snapshot'", id="no such role"),
    pytest.param(("PRE",), "not 'PRE'", id="capitals"),
    pytest.param(("",), "not ", id="empty"),
]


@pytest.mark.parametrize(("arguments", "says"), USAGE)
def test_wrong_role(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments, ENVIRONMENT) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "zvmsnap: error: usage: " in line
    assert says in line


@pytest.mark.parametrize("role", ["pre", "post", "prune"])
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        pytest.param({}, "SANOID_TARGET is not set", id="by hand"),
        pytest.param(ENVIRONMENT | {"SANOID_TARGET": "../x"}, "'../x' is not a name", id="absurd"),
    ],
)
def test_wrong_environment(
    role: str, environment: Mapping[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([role], environment) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "zvmsnap: error: SANOID_TARGET" in line
    assert says in line


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        pytest.param("vualt = '/v'\n", 2, "unknown field `vualt`", id="configuration"),
        pytest.param("vault = '/dev/null'\n", 1, "Not a directory: '/dev/null'", id="vault"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    code: int,
    says: str,
) -> None:
    own = f"journal = '{tmp_path}/journal'\nlocks = '{tmp_path}/locks'\n"
    (tmp_path / "config.toml").write_text(own + content)
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(tmp_path / "config.toml"))
    assert main.main(["prune"], ENVIRONMENT) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("program", "role"), [("pre-snapshot", "pre"), ("post-snapshot", "post"), ("pruning", "prune")]
)
def test_executables_that_sanoid_conf_names(program: str, role: str) -> None:
    path = ROOT / "hooks" / program
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/python3\n")
    assert f"/opt/zvmsnap/hooks/{program}\n" in (ROOT / "sanoid.conf.example").read_text()
    done = call((path,), {"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (2, "")
    assert "SANOID_TARGET is not set" in done.stderr
    assert f'run(["{role}"' in path.read_text()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((ROOT / "hooks" / "pruning",), id="executable"),
        pytest.param(("-m", "zvmsnap", "hook", "prune"), id="command"),
    ],
)
def test_prune_with_no_point_to_remove(
    settings: Mapping[str, str], command: tuple[str | Path, ...]
) -> None:
    done = call(command, {**settings, **ENVIRONMENT})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


T = "autosnap_2026-11-20_03:00:00"
Stage = Callable[..., Entry]


@pytest.fixture
def hook(
    settings: Mapping[str, str],
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., int]]:
    """Calls a hook for the run of `staged`; the caller is no sanoid."""
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setenv("ZVMSNAP_CONFIG", settings["ZVMSNAP_CONFIG"])
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(callers, "parent_of", lambda _pid: 1)

    def run(role: str, dataset: str = "tank/web", name: str = f"{T}_daily") -> int:
        return main.run([role], {"SANOID_TARGET": dataset, "SANOID_SNAPNAME": name})

    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def age(config: Config, entry: Entry, seconds: float) -> None:
    """Make the entry look as if nobody has worked on it for so long."""
    path = config.journal_dir / f"{entry.uuid}.json"
    changed_s = path.stat().st_mtime - seconds
    os.utime(path, (changed_s, changed_s))


@pytest.mark.parametrize(
    ("role", "age_s", "changes", "dataset", "finished"),
    [
        pytest.param("post", 0, {}, "tank/web", True, id="post, at once"),
        pytest.param("post", -9999, {}, "tank/web", True, id="post, clocks set back"),
        pytest.param("prune", 301, {}, "tank/web", True, id="prune, not tried for long"),
        pytest.param("prune", 290, {}, "tank/web", False, id="prune, tried lately"),
        pytest.param("post", 999, {}, "tank/db", False, id="post of another dataset"),
        pytest.param("prune", 999, {}, "tank/db", False, id="prune of another dataset"),
        pytest.param(
            "post",
            0,
            {"request_datasets": ("tank",)},
            "tank/web",
            True,
            id="a disk of its guest is on the dataset",
        ),
        pytest.param(
            "post", 0, {"request_datasets": ("tank",)}, "tank", True, id="it was of the parent"
        ),
        pytest.param("post", 999, {"owner": None}, "tank/web", False, id="post, sanoid runs"),
        pytest.param("prune", 999, {"owner": None}, "tank/web", False, id="prune, sanoid runs"),
    ],
)
def test_runs_whose_owner_is_dead(
    hook: Callable[..., int],
    config: Config,
    guest: FakeGuest,
    staged: Stage,
    role: str,
    age_s: float,
    changes: dict[str, Any],
    dataset: str,
    finished: bool,
) -> None:
    if "owner" in changes:
        # For post not this process: a hook that the same owner calls may end its run.
        changes = {"owner": Process.of(os.getppid() if role == "prune" else 1)}
    entry = staged(**changes)
    age(config, entry, age_s)
    assert hook(role, dataset) == 0
    assert (Journal(config.journal_dir).entries() == []) is finished
    assert guest.live["vda"].endswith("vda.raw") is finished


def unreachable(host: FakeHost, guest: FakeGuest) -> None:
    host.reachable = False


def not_committed(host: FakeHost, guest: FakeGuest) -> None:
    def fail() -> None:
        guest.at["commit vda"] = fail
        raise LibvirtFailed("no commit", 38)

    guest.at["commit vda"] = fail


def busy(host: FakeHost, guest: FakeGuest) -> None:
    guest.job = True


@pytest.mark.parametrize("fault", [unreachable, not_committed, busy])
def test_points_are_removed_though_a_run_cannot_be_finished(
    hook: Callable[..., int],
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    pools: FakeZfs,
    staged: Stage,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[FakeHost, FakeGuest], None],
) -> None:
    built = manifest(snapshots=(SnapshotRef("tank/web", f"{T}_daily", 5, 5),))
    vault.publish(vault.incoming(config.vault_dir, "web", built.capture), built)
    with open(os.environ["ZVMSNAP_CONFIG"], "a") as file:
        file.write("[limits]\nbusy_timeout_s = 0.01\n")
    entry = staged()
    age(config, entry, 999)
    fault(host, guest)
    assert hook("prune") == 1
    assert list(vault.entries(config.vault_dir)) == []
    assert len(Journal(config.journal_dir).entries()) == 1
    # sanoid calls prune for one snapshot after the other; the run is not tried each time.
    tried = list(guest.calls)
    assert hook("prune") == 0
    assert guest.calls == tried
    assert Journal(config.journal_dir).age_s(entry) < 290


@pytest.mark.parametrize("fault", [unreachable, not_committed])
def test_post_logs_that_an_interrupted_run_cannot_be_finished(
    hook: Callable[..., int],
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    staged: Stage,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[FakeHost, FakeGuest], None],
) -> None:
    staged()
    fault(host, guest)
    assert hook("post") == 1
    assert "error" in {record.levelname.lower().strip(": ") for record in caplog.records}


@pytest.fixture
def heard(tmp_path: Path, settings: Mapping[str, str]) -> Callable[[], list[dict[str, Any]]]:
    """What a program of the administrator was told."""
    program = tmp_path / "notify.d" / "a"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n/bin/cat >> {tmp_path}/heard\n")
    program.chmod(0o755)
    with open(settings["ZVMSNAP_CONFIG"], "a") as file:
        file.write(f"notify = '{program.parent}'\n")

    def told() -> list[dict[str, Any]]:
        decoder, text, found = json.JSONDecoder(), "", []
        if (tmp_path / "heard").exists():
            text = (tmp_path / "heard").read_text().strip()
        while text:
            one, end = decoder.raw_decode(text)
            found.append(one)
            text = text[end:].strip()
        return found

    return told


def test_post_tells_what_has_failed_of_which_guest(
    hook: Callable[..., int],
    heard: Callable[[], list[dict[str, Any]]],
    host: FakeHost,
    guest: FakeGuest,
    staged: Stage,
) -> None:
    staged()
    not_committed(host, guest)
    assert hook("post") == 1
    (told,) = heard()
    assert (told["kind"], told["guest"], told["level"]) == ("unfinished", "web", "memory")
    assert "no commit" in told["cause"] and told["what_to_do"] == "zvmsnap recover"


def test_a_hook_that_fails_as_a_whole_is_told(
    hook: Callable[..., int],
    heard: Callable[[], list[dict[str, Any]]],
    host: FakeHost,
    guest: FakeGuest,
    staged: Stage,
) -> None:
    staged()
    host.reachable = False
    assert hook("post") == 1
    (told,) = heard()
    assert (told["kind"], told["dataset"]) == ("hook", "tank/web")


def test_what_pre_has_noted_post_tells(
    hook: Callable[..., int],
    heard: Callable[[], list[dict[str, Any]]],
    config: Config,
    staged: Stage,
) -> None:
    notices.note(config, event.of(event.Kind.LEVEL, "no room", guest="web"))
    entry = staged()
    # A guest waits for sanoid, and so for pre.
    assert hook("pre") != 0
    assert [each for each in heard() if each["kind"] == "level"] == []
    Journal(config.journal_dir).close(entry)
    assert hook("post") == 0
    assert [each["cause"] for each in heard() if each["kind"] == "level"] == ["no room"]


HEAVY = """\
import sys
from zvmsnap.hooks import main as hooks
code = hooks.main(sys.argv[1:])
heavy = {"libvirt", "typer", "zvmsnap.virt.host", "zvmsnap.recovery.recover"}
print(sorted(heavy & set(sys.modules)))
"""


def test_prune_imports_little_also_while_a_run_is_under_way(
    settings: Mapping[str, str], config: Config, entry: Callable[..., Entry]
) -> None:
    Journal(config.journal_dir).write(entry(owner=Process.of(os.getpid())))
    done = call(("-c", HEAVY, "prune"), {**settings, **ENVIRONMENT})
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_only_sanoid_is_asked_whether_its_snapshots_are_recursive(tmp_path: Path) -> None:
    zrepl = Caller(1, ("zrepl",), 120, post_only_after_success=True)
    autobackup = Caller(1, ("zfs-autobackup",), math.inf)
    for caller, unnamed, recursive in ((zrepl, False, False), (autobackup, True, True)):
        rehearsal = Rehearsal(caller, "/etc/sanoid", Round(tmp_path, Process.of(1)))
        call = HookCall(Role.PRE, ("tank",), ("a",), unnamed=unnamed)
        assert main._recursion(call, caller, rehearsal)("tank") is recursive
    assert list(tmp_path.iterdir()) == []
