"""Runs `zfs` and `zpool`, and reads what they print."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

from zvmsnap.common.errors import GivenUp, RemoteFailed, ZfsFailed
from zvmsnap.common.process import run_program
from zvmsnap.common.ssh import HERE, RemoteHost, reason

_HINT = "is zfsutils-linux installed?"


def output(
    program: str, verb: str, *arguments: str, partial: bool = False, remote: RemoteHost = HERE
) -> bytes:
    """All that it prints. With `partial`, names that it does not know are left out.

    Raises ZfsFailed.
    """
    words = [program, verb, *arguments]
    try:
        # 1 is "an error occurred", which with `partial` may be no more than a missing name.
        codes = (0, 1) if partial else (0,)
        return _checked(f"{program} {verb}", lambda: remote.process(words), codes).stdout
    except ZfsFailed as error:
        raise ZfsFailed(f"{remote.where}{error}") from error


def each_line(program: str, verb: str, *arguments: str) -> Iterator[bytes]:
    """The lines of a long output, one after the other, which is kept outside of this process.

    Raises ZfsFailed.
    """
    words = [program, verb, *arguments]
    with os.fdopen(os.memfd_create(program), "w+b") as printed:
        _checked(f"{program} {verb}", lambda: run_program(words, into=printed), (0,))
        printed.seek(0)
        yield from printed


def _checked(
    what: str, run: Callable[[], CompletedProcess[bytes]], codes: tuple[int, ...]
) -> CompletedProcess[bytes]:
    try:
        done = run()
    except RemoteFailed as error:
        raise ZfsFailed(f"{error}; {_HINT}") from error
    except OSError as error:
        raise ZfsFailed(f"{what} cannot be run: {error.strerror}; {_HINT}") from error
    except GivenUp as error:
        raise ZfsFailed(str(error)) from error
    if done.returncode not in codes:
        raise ZfsFailed(f"{what} failed ({done.returncode}): {reason(done.stderr)}")
    return done


def text(output: bytes) -> str:
    """A property may hold any byte: a mountpoint, or what somebody has noted."""
    return output.decode(errors="surrogateescape")


def lines(output: str, columns: int) -> list[list[str]]:
    """Lines of that many columns; the last may contain tabs. Raises ZfsFailed."""
    split = [line.split("\t", columns - 1) for line in output.split("\n")[:-1]]
    for line in split:
        if len(line) != columns:
            raise ZfsFailed(f"zfs: a property holds a line break, near {line[0]!r}; remove it")
    return split
