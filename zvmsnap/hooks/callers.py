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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    lives. 0 if its death means nothing, as that of a shell. `sanoid`: what starts it, if it is
    sanoid.
    """

    pid: int
    command_line: tuple[str, ...]
    post_within_s: float
    post_only_after_success: bool = False
    sanoid: tuple[str, ...] = ()

    def path(self, name: str) -> Path:
        """The file that it calls by that name, which may be relative."""
        return _cwd(self.pid) / name


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
    return _search_sanoid()


def _search_sanoid() -> Caller:
    for pid, words in _ancestors():
        # What is between, a Perl script maybe, has its variables; sanoid itself was begun without.
        program = () if _has_variable(pid, "SANOID_TARGET") else sanoid.program(words, _cwd(pid))
        if program:
            return Caller(pid, words, math.inf, sanoid=program)
    return Caller(caller_pid(), (), 0.0)


def _search(
    is_caller: Callable[[Sequence[str]], bool],
    post_within_s: float,
    *,
    post_only_after_success: bool = False,
) -> Caller:
    for pid, words in _ancestors():
        if is_caller(words):
            return Caller(pid, words, post_within_s, post_only_after_success)
    return Caller(caller_pid(), (), 0.0, post_only_after_success)


def _ancestors() -> Iterator[tuple[int, tuple[str, ...]]]:
    """The processes above this one, and their command lines."""
    pid = caller_pid()
    while pid > INIT:
        yield pid, _command_line(pid)
        pid = parent_of(pid)


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
    return tuple(os.fsdecode(word) for word in _strings(pid, "cmdline"))


def _has_variable(pid: int, name: str) -> bool:
    """Was that process begun with the variable?"""
    return any(each.startswith(f"{name}=".encode()) for each in _strings(pid, "environ"))


def _strings(pid: int, file: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().removesuffix(b"\0").split(b"\0")
    except OSError:
        return []


def _cwd(pid: int) -> Path:
    return Path(f"/proc/{pid}/cwd")
