"""Commands that the documents show: typed at a terminal and answered with yes, or in a script."""

from __future__ import annotations

from shlex import quote

import scenario

from labkit.api import Completed, Lab


def typed(lab: Lab, command: str, *, status: int = 0) -> Completed:
    """Run it on a terminal; what is asked is answered with yes. It ends with that status."""
    done = lab.run(
        f"printf 'y\\n' | script -qec {quote(command)} /dev/null",
        check=False,
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    return _ended(command, done, status)


def run(lab: Lab, command: str, *, status: int = 0) -> Completed:
    """Run it as a script does, for what asks nothing. It ends with that status."""
    done = lab.run(command, check=False, timeout_s=scenario.ROUND_LIMIT_S)
    return _ended(command, done, status)


def _ended(command: str, done: Completed, status: int) -> Completed:
    print(f"$ {command}\n{done.stdout}{done.stderr}")
    assert done.returncode == status, (command, done)
    assert "Traceback" not in done.stdout + done.stderr, done
    return done
