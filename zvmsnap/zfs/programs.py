"""Runs `zfs` and `zpool`, and reads what they print.

Neither escapes anything (zprop_print_one_property in OpenZFS's libzfs_util.c). Names, numbers,
guids and the like hold no tab and no line break: `lines` reads them. The value of a user property,
or a mountpoint, may hold any byte but NUL, so whoever may set one could write lines of other
datasets: `properties` reads these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from subprocess import CompletedProcess
from typing import NamedTuple

from zvmsnap.common.errors import GivenUp, RemoteFailed, ZfsFailed
from zvmsnap.common.process import run_program
from zvmsnap.common.ssh import HERE, RemoteHost, reason

_HINT = "is zfsutils-linux installed?"
# Of ENOENT alone: zfs_standard_error_fmt in OpenZFS's libzfs_util.c. No name has a quote in it.
_MISSING = re.compile(rb"^cannot open '([^'\n]+)': dataset does not exist$", re.MULTILINE)
_OF_A_NAME = b"cannot open '"


def output(
    program: str,
    verb: str,
    *arguments: str,
    given: bytes = b"",
    partial: bool = False,
    remote: RemoteHost = HERE,
) -> bytes:
    """All that it prints, `given` on its standard input.

    With `partial`, names that it cannot open are left out. Raises ZfsFailed.
    """
    words = [program, verb, *arguments]
    what = f"{program} {verb}"
    try:
        # 1 is "an error occurred", which with `partial` may be no more than a missing name.
        done = _checked(what, lambda: remote.process(words, given), (0, 1) if partial else (0,))
        if done.returncode and not _says_of_names_alone(done.stderr):
            raise _failed(what, done)
        return done.stdout
    except ZfsFailed as error:
        raise ZfsFailed(f"{remote.where}{error}") from error


def _says_of_names_alone(stderr: bytes) -> bool:
    """Is each complaint one of a name, and none of ZFS itself, such as a missing /dev/zfs?"""
    said = [line for line in stderr.splitlines() if line.strip()]
    return bool(said) and all(line.startswith(_OF_A_NAME) for line in said)


def output_of_existing(program: str, verb: str, *arguments: str) -> tuple[bytes, frozenset[str]]:
    """All that it prints of names that exist, and the names that it says do not exist.

    What it says is English wherever we know it; where it is not, no name is said not to exist.
    Raises ZfsFailed.
    """
    done = _checked(f"{program} {verb}", lambda: run_program([program, verb, *arguments]), (0, 1))
    return done.stdout, frozenset(map(text, _MISSING.findall(done.stderr)))


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
        raise _failed(what, done)
    return done


def _failed(what: str, done: CompletedProcess[bytes]) -> ZfsFailed:
    return ZfsFailed(f"{what} failed ({done.returncode}): {reason(done.stderr)}")


def text(output: bytes) -> str:
    """What was printed; each byte that is no UTF-8 becomes a surrogate."""
    return output.decode(errors="surrogateescape")


def lines(output: str, columns: int) -> list[list[str]]:
    """Lines of that many columns, none of which can hold a tab. Raises ZfsFailed."""
    split = [line.split("\t") for line in output.split("\n")[:-1]]
    for line in split:
        if len(line) != columns:
            raise ZfsFailed(f"zfs: printed {len(line)} columns, not {columns}, near {line[0]!r}")
    return split


class Property(NamedTuple):
    """One property of a dataset, as `zfs get` calls it; the value may be anything."""

    dataset: str
    name: str
    source: str
    value: str


def properties(
    names: Iterable[str],
    datasets: Iterable[str] = (),
    remote: RemoteHost = HERE,
    *,
    below: bool = False,
    partial: bool = False,
) -> Iterator[Property]:
    """These properties of these datasets (and all below), or of all. Raises ZfsFailed.

    With `partial`, datasets that do not exist are left out. Before each, a property is asked for
    that no dataset has: its name is a secret of this call, so no value holds it.
    """
    mark = f"zvmsnap:{os.urandom(16).hex()}"
    asked = ",".join(f"{mark},{name}" for name in names)
    options = ("-t", "filesystem,volume", *(("-r",) if below else ()))
    columns = ("-o", "property,name,source,value")
    arguments = ("-Hp", *options, *columns, asked, *datasets)
    printed = output("zfs", "get", *arguments, partial=partial, remote=remote)
    for part in text(printed).split(f"{mark}\t")[1:]:
        name, dataset, source, value = part.partition("\n")[2].split("\t", 3)
        yield Property(dataset, name, source, value.removesuffix("\n"))


def version(remote: RemoteHost) -> str:
    """The version of ZFS on a machine, as `2.3.2-2`. Raises ZfsFailed."""
    said = text(output("zfs", "version", remote=remote)).split("\n")[0]
    return said.removeprefix("zfs-")


def pool(name: str, remote: RemoteHost) -> dict[str, str]:
    """All properties of a pool, and its features as `feature@NAME`. Raises ZfsFailed.

    A feature is `enabled`, `active` or `disabled`, or missing, if the ZFS there does not know it.
    """
    printed = output("zpool", "get", "-Hpo", "property,value", "all", name, remote=remote)
    pairs = (line.partition("\t") for line in text(printed).split("\n"))
    return {name: value for name, tab, value in pairs if tab}
