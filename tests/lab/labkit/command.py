"""Run a program of the host."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from labkit.errors import LabError


def run(argv: Sequence[str | Path], *, timeout_s: float = 120.0, log: Path | None = None) -> str:
    """Run a program and return what it printed; with `log` that goes to a file instead."""
    if shutil.which(argv[0]) is None:
        raise LabError(f"{argv[0]} is not installed; tests/lab/needs installs what the lab needs")
    try:
        if log is not None:
            with log.open("ab") as out:
                subprocess.run(argv, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
                               stdout=out, stderr=subprocess.STDOUT)
            return ""
        done = subprocess.run(argv, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{argv[0]} took more than {timeout_s:.0f} s") from exc
    except subprocess.CalledProcessError as exc:
        said = tail(log) if log else f"{exc.stdout}{exc.stderr}"
        raise LabError(f"{' '.join(map(str, argv))} failed with {exc.returncode}:\n{said}") from exc
    return done.stdout


def tail(path: Path | None, lines: int = 25) -> str:
    """The last lines of a log, for an error message."""
    if path is None or not path.exists():
        return ""
    text = path.read_bytes()[-20_000:].decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
