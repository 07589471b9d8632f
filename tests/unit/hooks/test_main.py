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
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.hooks import callers, main
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.zfs import mounts

ROOT = Path(zvmsnap.__file__).parents[1]
ENVIRONMENT = {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": "autosnap_x_hourly"}


@pytest.fixture
def settings(tmp_path: Path, config: Config) -> Mapping[str, str]:
    """An environment that leads every hook to directories of the test."""
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
def test_one_line_for_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    code: int,
    says: str,
) -> None:
    (tmp_path / "config.toml").write_text(content)
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
    assert f'main(["{role}"' in path.read_text()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((ROOT / "hooks" / "pruning",), id="executable"),
        pytest.param(("-m", "zvmsnap", "hook", "prune"), id="command"),
    ],
)
def test_prune_with_nothing_to_forget(
    settings: Mapping[str, str], command: tuple[str | Path, ...]
) -> None:
    done = call(command, {**settings, **ENVIRONMENT})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


ORPHAN = """\
from zvmsnap.common import signals
from zvmsnap.common.errors import Cancelled
try:
    signals.cancelled_with_parent(1)
except Cancelled as error:
    print(error)
"""


def test_pre_begins_nothing_when_sanoid_is_dead_already() -> None:
    done = call(("-c", ORPHAN), {})
    assert done.stdout == "sanoid is dead already; nothing was touched\n"


SANOID = """\
import os, subprocess, sys
hook = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
hook.stdout.readline()
os._exit(0)
"""
HOOK = """\
import os
from zvmsnap.common import log, signals
log.setup()
cancelled = signals.cancelled_with_parent(os.getppid())
assert not cancelled.is_set()
os.write(1, b"ready\\n")
print("cancelled" if cancelled.wait(20) else "still waiting", file=__import__("sys").stderr)
"""


def test_pre_is_cancelled_when_sanoid_dies_under_it() -> None:
    done = call(("-c", SANOID, HOOK), {})
    assert "error: sanoid died (script_timeout?): putting every guest back" in done.stderr
    assert done.stderr.endswith("cancelled\n")


SIGNALLED = """\
import os, signal, sys
from zvmsnap.common import log, signals
log.setup()
{setup}
os.kill(os.getpid(), signal.{name})
print({state})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize(
    ("setup", "state", "says"),
    [
        pytest.param(
            "event = signals.cancelled_with_parent(os.getppid())",
            "event.is_set()",
            "error: {}: putting every guest back",
            id="pre",
        ),
        pytest.param("signals.finish_before_dying()", "True", "warning: {}: finishing", id="post"),
    ],
)
def test_signals_do_not_end_a_hook_half_way(name: str, setup: str, state: str, says: str) -> None:
    code = SIGNALLED.format(setup=setup, name=name, state=state)
    done = call(("-c", code), {})
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert says.format(name) in done.stderr


T = "autosnap_2026-11-20_03:00:00"
Stage = Callable[..., Entry]


@pytest.fixture
def hook(
    settings: Mapping[str, str],
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., int]]:
    """Calls a hook for the moment of `staged`; whoever called it is no sanoid."""
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setenv("ZVMSNAP_CONFIG", settings["ZVMSNAP_CONFIG"])
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(callers, "_parent_of", lambda _pid: 1)

    def run(role: str, dataset: str = "tank/web", name: str = f"{T}_daily") -> int:
        return main.run([role], {"SANOID_TARGET": dataset, "SANOID_SNAPNAME": name})

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def old(config: Config, entry: Entry, seconds: float) -> None:
    """Let it seem that nobody has worked on it for so long."""
    path = config.journal_dir / f"{entry.uuid}.json"
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


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
            id="its disk is on the dataset",
        ),
        pytest.param(
            "post", 0, {"request_datasets": ("tank",)}, "tank", True, id="it was for the parent"
        ),
        pytest.param("post", 999, {"owner": None}, "tank/web", False, id="post, sanoid runs"),
        pytest.param("prune", 999, {"owner": None}, "tank/web", False, id="prune, sanoid runs"),
    ],
)
def test_abandoned_moments(
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
        # Not ourselves: whoever is called by the same sanoid may end its moment.
        changes = {"owner": Process.of(os.getppid() if role == "prune" else 1)}
    known = staged(**changes)
    old(config, known, age_s)
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
def test_what_cannot_be_finished_does_not_keep_points_from_being_forgotten(
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
    monkeypatch.setattr(jobs, "_LOOK_EVERY_S", 0.001)
    built = manifest(snapshots=(SnapshotRef("tank/web", f"{T}_daily", 5, 5),))
    vault.publish(vault.incoming(config.vault_dir, "web", built.capture), built)
    with open(os.environ["ZVMSNAP_CONFIG"], "a") as file:
        file.write("[limits]\nbusy_timeout_s = 0.01\n")
    known = staged()
    old(config, known, 999)
    fault(host, guest)
    assert hook("prune") == 1
    assert list(vault.entries(config.vault_dir)) == []
    assert len(Journal(config.journal_dir).entries()) == 1
    # sanoid calls it for one snapshot after the other: it is not tried for each of them again.
    tried = list(guest.calls)
    assert hook("prune") == 0
    assert guest.calls == tried
    assert Journal(config.journal_dir).age_s(known) < 290


@pytest.mark.parametrize("fault", [unreachable, not_committed])
def test_post_that_cannot_finish_what_others_left_says_so(
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


HEAVY = """\
import sys
from zvmsnap.hooks import main as hooks
code = hooks.main(sys.argv[1:])
heavy = {"libvirt", "typer", "zvmsnap.virt.host", "zvmsnap.recovery.recover"}
print(sorted(heavy & set(sys.modules)))
"""


def test_prune_is_light_also_while_a_moment_is_under_way(
    settings: Mapping[str, str], config: Config, entry: Callable[..., Entry]
) -> None:
    Journal(config.journal_dir).write(entry(owner=Process.of(os.getpid())))
    done = call(("-c", HEAVY, "prune"), {**settings, **ENVIRONMENT})
    assert (done.stdout, done.stderr) == ("[]\n", "")
