"""Who calls the hooks: sanoid, zrepl or zfs_autobackup, and when each of them calls post.

| caller         | datasets are in        | snapshot names | calls post                          |
|----------------|------------------------|----------------|-------------------------------------|
| sanoid         | SANOID_... variables   | announced      | always, unless it dies              |
| zrepl          | ZREPL_..., one dataset | announced      | soon, if pre exited with 0; if not, |
|                |                        |                | never, but it lives on              |
| zfs_autobackup | arguments, whole trees | not announced  | always, unless it dies              |

zrepl kills a hook that takes longer than its `timeout` (30 s by default). So pre must not fail
once a guest waits for post, and the watchdog does not wait for zrepl's post without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.common.process import INIT, parent_of
from zvmsnap.hooks import sanoid, zfs_autobackup, zrepl
from zvmsnap.hooks.stand_in import caller_pid
from zvmsnap.journal.request import HookCall, Role


@dataclass(frozen=True)
class Caller:
    """A process that calls the hooks.

    `post_within_s`: if it has not called post after so many seconds, it never will, though it
    lives. 0 if its death means nothing, as that of a shell.
    """

    pid: int
    command_line: tuple[str, ...]
    post_within_s: float
    post_only_after_success: bool = False


def hook_call(words: Sequence[str], environment: Mapping[str, str]) -> HookCall | None:
    """Read arguments (a role, and maybe datasets) and environment as a call of a hook.

    None if the caller only rehearses. Raises HookEnvironmentInvalid.
    """
    if "ZREPL_HOOKTYPE" in environment:
        return zrepl.hook_call(environment)
    if len(words) > 1:
        return zfs_autobackup.hook_call(_role(words[:1]), words[1:])
    return sanoid.hook_call(_role(words), environment)


def find_caller(call: HookCall, environment: Mapping[str, str]) -> Caller:
    """Find the caller among the parents of this process: scripts may be between."""
    if "ZREPL_HOOKTYPE" in environment:
        return _search(zrepl.is_zrepl, zrepl.POST_WITHIN_S, post_only_after_success=True)
    if call.unnamed:
        return _search(zfs_autobackup.is_autobackup, math.inf)
    return _search(sanoid.is_sanoid, math.inf)


def _search(
    is_caller: Callable[[Sequence[str]], bool],
    post_within_s: float,
    *,
    post_only_after_success: bool = False,
) -> Caller:
    pid = caller_pid()
    while pid > INIT:
        command_line = _command_line(pid)
        if is_caller(command_line):
            return Caller(pid, command_line, post_within_s, post_only_after_success)
        pid = parent_of(pid)
    return Caller(caller_pid(), (), 0.0, post_only_after_success)


def _role(words: Sequence[str]) -> Role:
    try:
        (word,) = words
        return Role(word)
    except ValueError:
        roles = "|".join(Role)
        raise HookEnvironmentInvalid(
            f"usage: zvmsnap hook {roles}, not {' '.join(words) or 'nothing'!r}"
        ) from None


def _command_line(pid: int) -> tuple[str, ...]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words)
