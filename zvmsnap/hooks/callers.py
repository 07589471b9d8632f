"""Who calls the hooks, and what that means: sanoid, zrepl, zfs_autobackup.

| caller         | says what is snapshotted | names of snapshots | post is called                  |
|----------------|--------------------------|--------------------|---------------------------------|
| sanoid         | SANOID_... (sanoid)      | told               | until it dies                   |
| zrepl          | ZREPL_..., one dataset   | told               | after a pre that exited with 0, |
|                |                          |                    | soon; else never, and it lives  |
| zfs_autobackup | arguments, whole trees   | not told           | until it dies                   |

zrepl kills what takes longer than the `timeout` of the hook (30 s by default). So its pre must not
fail once a guest waits for post, and the guard does not wait for its post for ever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.hooks import sanoid, zfs_autobackup, zrepl
from zvmsnap.journal.request import HookCall, Role

_INIT = 1


@dataclass(frozen=True)
class Caller:
    """A process that calls the hooks.

    `post_within_s`: when it lives, and has not called post for so long, it will not. 0 if its
    death means nothing, as of a shell.
    """

    pid: int
    command_line: tuple[str, ...]
    post_within_s: float
    post_only_after_success: bool = False


def hook_call(words: Sequence[str], environment: Mapping[str, str]) -> HookCall | None:
    """What the caller says; `words` are role and datasets. None: it only rehearses.

    Raises HookEnvironmentInvalid.
    """
    if "ZREPL_HOOKTYPE" in environment:
        return zrepl.hook_call(environment)
    if len(words) > 1:
        return zfs_autobackup.hook_call(_role(words[:1]), words[1:])
    return sanoid.hook_call(_role(words), environment)


def above(call: HookCall, environment: Mapping[str, str]) -> Caller:
    """Who called us, directly or through a script."""
    if "ZREPL_HOOKTYPE" in environment:
        return _find(zrepl.is_zrepl, zrepl.POST_WITHIN_S, post_only_after_success=True)
    if call.unnamed:
        return _find(zfs_autobackup.is_autobackup, math.inf)
    return _find(sanoid.is_sanoid, math.inf)


def _find(
    is_it: Callable[[Sequence[str]], bool],
    post_within_s: float,
    *,
    post_only_after_success: bool = False,
) -> Caller:
    pid = os.getppid()
    while pid > _INIT:
        line = _command_line(pid)
        if is_it(line):
            return Caller(pid, line, post_within_s, post_only_after_success)
        pid = _parent_of(pid)
    return Caller(os.getppid(), (), 0.0, post_only_after_success)


def _role(words: Sequence[str]) -> Role:
    try:
        (word,) = words
        return Role(word)
    except ValueError:
        roles = "|".join(Role)
        raise HookEnvironmentInvalid(
            f"usage: zvmsnap hook {roles}, not {' '.join(words) or 'nothing'!r}"
        ) from None


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return _INIT
    return int(stat.rpartition(b")")[2].split()[1])


def _command_line(pid: int) -> tuple[str, ...]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words)
