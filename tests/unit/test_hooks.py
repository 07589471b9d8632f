import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from zvmsnap import hooks
from zvmsnap.config import Config

ROOT = Path(hooks.__file__).parents[1]
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
    pytest.param(("pre", "post"), "not 'pre post'", id="two"),
    pytest.param(("PRE",), "not 'PRE'", id="capitals"),
    pytest.param(("",), "not ", id="empty"),
]


@pytest.mark.parametrize(("arguments", "says"), USAGE)
def test_wrong_role(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hooks.main(arguments, ENVIRONMENT) == 2
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
    assert hooks.main([role], environment) == 2
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
    assert hooks.main(["prune"], ENVIRONMENT) == code
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
    assert f'main(["{role}"])' in path.read_text()


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
from zvmsnap import hooks
try:
    hooks._cancelled_with_parent(1)
except hooks.Cancelled as error:
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
from zvmsnap import hooks, log
log.setup()
cancelled = hooks._cancelled_with_parent(os.getppid())
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
from zvmsnap import hooks, log
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
            "event = hooks._cancelled_with_parent(os.getppid())",
            "event.is_set()",
            "error: {}: putting every guest back",
            id="pre",
        ),
        pytest.param("hooks.finish_before_dying()", "True", "warning: {}: finishing", id="post"),
    ],
)
def test_signals_do_not_end_a_hook_half_way(name: str, setup: str, state: str, says: str) -> None:
    code = SIGNALLED.format(setup=setup, name=name, state=state)
    done = call(("-c", code), {})
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert says.format(name) in done.stderr
