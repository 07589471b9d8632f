"""Which snapshots are being sent, and by whom: while one is, its dataset cannot be promoted over.

`zfs send` holds the snapshots that it reads in the kernel (dsl_dataset_long_hold), where no
property shows it, and `zfs promote` fails with EBUSY for each that would move. The same check can
be asked for without doing anything: zfs.check.destroy of a channel program, with `defer`, fails
with EBUSY for such holds and for nothing else (dsl_destroy_snapshot_check_impl). A mounted snapshot
is held in the same way, but promote unmounts it first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.process import Process
from zvmsnap.zfs import mounts, programs

_PROC = Path("/proc")
_EBUSY = 16
# Snapshots in one call; a channel program may use 10 MiB and 10 million instructions.
_AT_ONCE = 2000

# Returns the errno of each snapshot that cannot be destroyed now.
_PROGRAM = b"""
local busy = {}
local arguments = ...
for _, snapshot in ipairs(arguments["argv"]) do
    local errno = zfs.check.destroy{snapshot, defer=true}
    if errno ~= 0 then busy[snapshot] = errno end
end
return busy
"""


class _Printed(msgspec.Struct):
    """What `zfs program -j` prints."""

    errors: dict[str, int] = msgspec.field(default_factory=dict, name="return")


@dataclass(frozen=True)
class Sender:
    """A process that runs `zfs send`, and its command line."""

    process: Process
    command: str
    many: bool  # snapshots, one after the other: between two of them none is held

    def __str__(self) -> str:
        return f"pid {self.process.pid} ({self.command})"


def held(snapshots: Iterable[str]) -> list[str]:
    """Those of the snapshots that the kernel holds, as they are being sent. Raises ZfsFailed."""
    mounted = {mount.dataset for mount in mounts.read_table()}
    by_pool: dict[str, list[str]] = {}
    for name in sorted(set(snapshots) - mounted):
        by_pool.setdefault(name.partition("/")[0].partition("@")[0], []).append(name)
    return [
        name
        for pool, names in by_pool.items()
        for begin in range(0, len(names), _AT_ONCE)
        for name in _busy(pool, names[begin : begin + _AT_ONCE])
    ]


def _busy(pool: str, names: Sequence[str]) -> list[str]:
    # -n: the program may change nothing. By a process, as libzfs_core takes longer to be imported.
    try:
        printed = programs.output("zfs", "program", "-jn", pool, "-", *names, given=_PROGRAM)
        errors = msgspec.json.decode(printed, type=_Printed).errors
    except (ZfsFailed, msgspec.DecodeError) as error:
        raise ZfsFailed(f"{pool}: cannot be asked for running sends: {error}") from error
    return sorted(name for name, errno in errors.items() if errno == _EBUSY)


def senders(datasets: Iterable[str], proc: Path = _PROC) -> list[Sender]:
    """The processes that send snapshots of these datasets, or of all below one above them."""
    wanted = set(datasets)
    return [
        Sender(Process.of(pid), " ".join(words), _sends_many(words))
        for pid, words in _commands(proc)
        if _sends(words) & wanted
        or any(each.startswith(f"{top}/") for top in _sends(words) for each in wanted)
    ]


def _commands(proc: Path) -> Iterator[tuple[int, list[str]]]:
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
        with suppress(OSError):  # it has just ended
            line = (directory / "cmdline").read_bytes()
            yield int(directory.name), os.fsdecode(line).rstrip("\0").split("\0")


def _sends_many(words: Sequence[str]) -> bool:
    options = [word for word in words[2:] if word.startswith("-")]
    return any(letter in option for option in options for letter in "IR")


def _sends(words: Sequence[str]) -> set[str]:
    """The datasets that a command line sends: `zfs send ... DATASET@NAME`."""
    if os.path.basename(words[0]) != "zfs" or words[1:2] != ["send"]:
        return set()
    return {words[-1].partition("@")[0].partition("#")[0]}
