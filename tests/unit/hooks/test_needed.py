"""What is said when a Python package is missing, and whose packages are taken."""

import subprocess
import sys
from pathlib import Path

import pytest

import zvmsnap
from zvmsnap.hooks import needed

ROOT = Path(zvmsnap.__file__).parents[1]
VERSION = ".".join(map(str, sys.version_info[:3]))
CALLED = {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": "autosnap_x_hourly"}


def run_without(
    module: str, call: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules[{module!r}] = None\n{call}"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


HOOK = "from zvmsnap.hooks.start import run\nsys.exit(run(['pre']))"
COMMAND = "sys.argv = ['zvmsnap', 'list']\nfrom zvmsnap.__main__ import main\nmain()"
WATCHDOG = "sys.argv = ['zvmsnap', 'watchdog']\nfrom zvmsnap.__main__ import main\nmain()"


@pytest.mark.parametrize(
    ("module", "call", "package"),
    [
        ("msgspec", HOOK, "python3-msgspec"),
        ("libvirt", HOOK, "python3-libvirt"),
        ("msgspec", COMMAND, "python3-msgspec"),
        ("typer", COMMAND, "python3-typer"),
        ("msgspec", WATCHDOG, "python3-msgspec"),
    ],
)
def test_a_missing_package_is_one_line(module: str, call: str, package: str) -> None:
    done = run_without(module, call, CALLED)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.partition("zvmsnap: error: ")[2] == (
        f"the Python package {module} is missing for {sys.executable}, Python {VERSION}: install "
        f"{package}, or zvmsnap-python where the distribution has none; see docs/how-to/install.md"
    )


def test_a_package_that_nobody_knows() -> None:
    said = needed.line(ImportError("cannot import name 'x'\nfrom 'zvmsnap.y'", name="zvmsnap.y"))
    assert said.startswith("a Python package is not as it should be: cannot import name 'x'")
    assert said.endswith("install zvmsnap anew")


def test_a_package_that_is_too_old() -> None:
    said = needed.line(ImportError("cannot import name 'x' from 'typer'", name="typer"))
    assert "the Python package typer cannot be used (cannot import name 'x' from 'typer')" in said


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 12, "final", 0))
    said = needed.line(ImportError("cannot import name 'UTC' from 'datetime'", name="datetime"))
    assert said == f"Python 3.11 or later is needed, and {sys.executable} is 3.10.12"


def test_the_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    needed.tell(ImportError("this\nand that", name="none"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_own_packages_are_taken_for_this_python_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["/usr/lib/python3/dist-packages"])
    (tmp_path / "python3.1").mkdir()
    needed.prefer_own(str(tmp_path))
    assert sys.path == ["/usr/lib/python3/dist-packages"]
    own = tmp_path / f"python{sys.version_info.major}.{sys.version_info.minor}"
    own.mkdir()
    needed.prefer_own(str(tmp_path))
    needed.prefer_own(str(tmp_path))
    assert sys.path == [str(own), "/usr/lib/python3/dist-packages"]
