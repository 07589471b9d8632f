import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import zvmsnap
from tests.fakes.host import FakeHost
from zvmsnap.bulk import progress
from zvmsnap.cli import main
from zvmsnap.points.manifest import Manifest

Run = Callable[..., tuple[int, str, str]]
NAME = "autosnap_2026-11-20_03:00:00_hourly"


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"zvmsnap {zvmsnap.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--config", "/nonexistent/config.toml", "list"], 2),
        (["no-such-command"], 2),
        (["hook", "middle"], 2),
        (["hook"], 2),
        (["-v", "hook", "pre"], 2),
        (["hook", "pre"], 2),
        (["hook", "--help"], 0),
        (["--help"], 0),
    ],
)
def test_exit_codes_of_the_real_command(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zvmsnap", *arguments],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["list"], True),
        (["--quiet", "list"], False),
        (["--verbose", "hook", "--help"], False),
    ],
)
def test_who_shows_progress(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], shown: bool
) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(progress, "want", wanted.append)
    assert run(*words)[0] == 0
    assert wanted == [shown]


TELLS_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from zvmsnap.__main__ import main
main()
"""


def test_no_command_loads_rich() -> None:
    """typer 0.15 does, where it is installed, and takes twice as long then."""
    script = "import atexit, sys; atexit.register(lambda: print(sys.modules.get('rich', 'loads')))"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nfrom zvmsnap.__main__ import main\nmain()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "None"


@pytest.mark.parametrize(
    ("arguments", "loaded", "not_loaded"),
    [
        ("restore --help", ["restore"], ["take", "replication", "points", "clone"]),
        ("--config /etc/other.toml -v clone --help", ["clone"], ["take", "restore", "points"]),
        ("--help", ["take", "replication", "points", "clone", "restore", "verify"], []),
        ("no-such-command", ["take", "replication", "points"], []),
    ],
)
def test_a_command_waits_for_no_other(
    arguments: str, loaded: list[str], not_loaded: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TELLS_MODULES, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = set(done.stderr.splitlines()[-1].split())
    assert {f"zvmsnap.cli.{name}" for name in loaded} <= imported
    assert {f"zvmsnap.cli.{name}" for name in not_loaded}.isdisjoint(imported)


def test_the_parser_needs_no_libvirt() -> None:
    """Nor does `make deb`, whose man pages are made of it."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules['libvirt'] = None\n{TELLS_MODULES}",
            "--help",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "only"),
    [
        ("list", True),
        ("--config /etc/other.toml -v list web", True),
        ("show web@latest", True),
        ("status --json", True),
        ("verify web", True),
        ("verify --boot web", False),
        ("verify --expect-command true web", False),
        ("prune", False),
        ("prune --dry-run", True),
        ("restore -n web@latest", True),
        ("restore web@latest", False),
        ("clone web@latest list", False),
        ("recover", False),
        ("take web", False),
        ("--config list take web", False),
        ("--version", False),
        ("", False),
    ],
)
def test_what_only_reads(line: str, only: bool) -> None:
    assert main.only_reads(line.split()) == only


HANGS = """
import signal
from zvmsnap import __main__
from zvmsnap.cli import points
from zvmsnap.hooks import stand_in
stand_in.HangWatch.hangs = lambda watch: True
points.load_settings = signal.pause
__main__.main()
"""


@pytest.mark.parametrize("arguments", [["list"], ["show", "web@latest"], ["prune", "--dry-run"]])
def test_what_only_reads_is_given_up_when_it_hangs(arguments: list[str]) -> None:
    """As a thread in a file of a suspended pool does, which no signal ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(zvmsnap.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.wait(60) == 1
        assert process.stderr
        assert "hangs in the kernel" in process.stderr.readline()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("arguments", [["list"], ["prune"], ["show", "web@x"]])
def test_a_vault_that_is_not_mounted_is_refused(
    run: Run, tmp_path: Path, put: Callable[[Manifest], Path], arguments: list[str]
) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "vault.id").write_bytes(b"of another")
    code, out, err = run(*arguments)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "is its file system mounted?" in err


@pytest.mark.parametrize("arguments", [["list"], ["prune"], ["recover"], ["show", "web@x"]])
@pytest.mark.parametrize("directory", ["vault", "journal", "staging", "locks"])
def test_a_file_in_place_of_a_directory_is_one_line(
    run: Run, overlaid_host: FakeHost, tmp_path: Path, arguments: list[str], directory: str
) -> None:
    (tmp_path / directory).write_text("foreign")
    code, _, err = run(*arguments)
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert (tmp_path / directory).read_text() == "foreign"
    assert code == 0 or len(err.splitlines()) == 1
