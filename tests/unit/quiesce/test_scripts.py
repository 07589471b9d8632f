import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fakes.clock import until
from zvmsnap.common.errors import ScriptFailed
from zvmsnap.config.settings import Config, Limits
from zvmsnap.journal.entry import Entry
from zvmsnap.quiesce import scripts

PRE = scripts.PRE_FREEZE
NOTE = 'echo "$0 $ZVMSNAP_DOMAIN $ZVMSNAP_UUID $ZVMSNAP_SNAPNAMES $ZVMSNAP_DATASETS" > {}\n'


@pytest.fixture
def settings(config: Config, tmp_path: Path) -> Config:
    return msgspec.structs.replace(config, guest_scripts=str(tmp_path / "guest.d"))


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Puts a program in its place, as the administrator does."""

    def write(text: str, folder: str = "web", mode: int = 0o755, shell: str = "#!/bin/sh") -> Path:
        path = tmp_path / "guest.d" / folder / PRE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{shell}\n{text}" if shell else text)
        path.chmod(mode)
        return path

    return write


def hasty(config: Config, limit_s: float = 1.0) -> Config:
    return msgspec.structs.replace(config, limits=Limits(script_timeout_s=limit_s))


def test_environment(
    settings: Config, put: Callable[..., Path], entry: Callable[..., Entry], tmp_path: Path
) -> None:
    path = put(NOTE.format(tmp_path / "noted"))
    known = entry(snapshot_names=("a_hourly", "a_daily"))
    scripts.run(settings, known, PRE)
    said = f"{path} web {known.uuid} a_hourly,a_daily tank/web\n"
    assert (tmp_path / "noted").read_text() == said


def test_which_program(
    settings: Config, put: Callable[..., Path], entry: Callable[..., Entry]
) -> None:
    assert not scripts.exists(settings, entry(), PRE)
    put("", folder="db")
    assert not scripts.exists(settings, entry(), PRE)
    put("")
    assert scripts.exists(settings, entry(), PRE)
    assert not scripts.exists(settings, entry(), scripts.POST_THAW)
    with pytest.raises(ScriptFailed, match="web/post-thaw: cannot be run: No such file"):
        scripts.run(settings, entry(), scripts.POST_THAW)


@pytest.mark.parametrize("name", [".", ".."])
def test_guest_whose_name_would_lead_elsewhere(
    settings: Config,
    put: Callable[..., Path],
    entry: Callable[..., Entry],
    tmp_path: Path,
    name: str,
) -> None:
    put(NOTE.format(tmp_path / "noted"), folder=name)
    known = entry(domain=name)
    assert not scripts.exists(settings, known, PRE)
    put(NOTE.format(tmp_path / "noted"), folder=known.uuid)
    scripts.run(settings, known, PRE)
    assert (tmp_path / "noted").read_text().startswith(f"{tmp_path}/guest.d/{known.uuid}/{PRE} ")


FAILING = [
    pytest.param("exit 3", "failed (3): ", id="says nothing"),
    pytest.param("echo one\necho no database >&2\nexit 1", "failed (1): no database", id="says so"),
    pytest.param("printf '\\377 a\\n\\n'\nexit 1", r"failed (1): \xff a", id="no text"),
    pytest.param("kill -9 $$", "failed (-9): ", id="killed"),
    pytest.param(f"echo {'x' * 999}\nexit 1", f"failed (1): {'x' * 199}…", id="says too much"),
    pytest.param(
        "printf 'y%.0s' $(seq 9999)\nprintf '\\n\\033[2J\\a'\nexit 1",
        r"failed (1): \x1b[2J\x07",
        id="commands for a terminal",
    ),
]


@pytest.mark.parametrize(("text", "says"), FAILING)
def test_failing(
    settings: Config, put: Callable[..., Path], entry: Callable[..., Entry], text: str, says: str
) -> None:
    path = put(text)
    with pytest.raises(ScriptFailed) as caught:
        scripts.run(settings, entry(), PRE)
    assert str(caught.value) == f"{path}: {says}"


@pytest.mark.parametrize(
    ("mode", "shell", "says"),
    [
        pytest.param(0o644, "#!/bin/sh", "cannot be run: Permission denied", id="not executable"),
        pytest.param(0o755, "#!/no/shell", "cannot be run: No such file", id="no such shell"),
        pytest.param(0o755, "", "cannot be run: Exec format error", id="no shell"),
    ],
)
def test_what_cannot_be_run(
    settings: Config,
    put: Callable[..., Path],
    entry: Callable[..., Entry],
    mode: int,
    shell: str,
    says: str,
) -> None:
    path = put("exit 0", mode=mode, shell=shell)
    with pytest.raises(ScriptFailed) as caught:
        scripts.run(settings, entry(), PRE)
    assert str(caught.value).startswith(f"{path}: {says}")


def runs(pid: int) -> bool:
    """Does it run? A zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """The process that a program has started, by the number that it has written down."""
    path = tmp_path / "child"
    yield lambda: int(path.read_text() or 0)
    if path.exists() and runs(int(path.read_text())):
        os.kill(int(path.read_text()), signal.SIGKILL)


def test_what_hangs_is_killed_with_all_that_it_has_started(
    settings: Config,
    put: Callable[..., Path],
    entry: Callable[..., Entry],
    tmp_path: Path,
    child: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = put(f"trap '' TERM\nsleep 300 & echo $! > {tmp_path}/child\nsleep 300")
    wait = subprocess.Popen.wait
    limits: list[float] = []

    def hang(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """The limit runs out when the program has started all that it will."""
        if timeout is None:
            return wait(process)
        limits.append(timeout)
        until(lambda: (tmp_path / "child").exists() and child() > 0)
        return wait(process, 0.01)

    monkeypatch.setattr(subprocess.Popen, "wait", hang)
    with pytest.raises(ScriptFailed) as caught:
        scripts.run(hasty(settings), entry(), PRE)
    assert str(caught.value) == f"{path}: takes longer than 1 s"
    # The second is for one that hangs in the kernel: it cannot be killed.
    assert limits == [1.0, 5]
    until(lambda: not runs(child()))


@pytest.mark.parametrize("status", [0, 1])
def test_a_daemon_that_keeps_its_output_open_is_not_waited_for(
    settings: Config,
    put: Callable[..., Path],
    entry: Callable[..., Entry],
    tmp_path: Path,
    child: Callable[[], int],
    status: int,
) -> None:
    put(f"sleep 300 & echo $! > {tmp_path}/child\necho begun\nexit {status}")
    begun_s = time.monotonic()
    if status:
        with pytest.raises(ScriptFailed, match="begun"):
            scripts.run(settings, entry(), PRE)
    else:
        scripts.run(settings, entry(), PRE)
    assert time.monotonic() - begun_s < settings.limits.script_timeout_s
    assert runs(child())


def test_it_reads_nothing_from_us(
    settings: Config, put: Callable[..., Path], entry: Callable[..., Entry]
) -> None:
    put("read line && exit 1\nexit 0")
    scripts.run(settings, entry(), PRE)
