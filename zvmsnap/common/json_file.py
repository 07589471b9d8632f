"""Our JSON files: each says its schema, which is read before anything else of it is.

| what is wrong                              | raised              | the file may be         |
|--------------------------------------------|---------------------|-------------------------|
| there is no such file                      | FileNotFoundError   |                         |
| it cannot be read now (permissions, disk)  | Unreadable          | as it should be         |
| it has another schema                      | OtherSchema         | of another version      |
| it is larger than any of ours              | Damaged             | moved out of the way    |
| anything else                              | Damaged             | moved out of the way    |

Each says in one short line what is wrong. Who catches Unreadable catches all but the first.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.common.safe_files import write_atomic

Content = TypeVar("Content")

# A manifest with 10 000 snapshots has 3 MB.
_BYTES_MAX = 64 << 20
_PATTERN = re.compile(r"Expected `str` matching regex .* - at `(\$[^`]*)`")
_WHY_MAX = 300  # characters: an error may quote the value that it found


class Unreadable(ZvmsnapError):
    """A file of ours cannot be read: `path`, and why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class Damaged(Unreadable):
    """It was read, and is not what this version, or any other, has written."""


class OtherSchema(Unreadable):
    """Another version of zvmsnap has written it, which alone knows what it says."""

    def __init__(self, path: Path, schema: int) -> None:
        super().__init__(path, f"schema {schema} is not one this version reads")
        self.schema = schema


class _Header(msgspec.Struct):
    schema: int


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_making_decoder = threading.Lock()


def decode(data: bytes | str | msgspec.Raw, kind: Any) -> Any:
    """JSON as a `kind`. Raises msgspec.MsgspecError, UnicodeDecodeError and RecursionError.

    msgspec keeps what it knows of a struct with the struct, before it knows all of it: another
    thread that decodes one at that time dies of a segmentation fault (seen with 0.19 and 0.22). So
    decoders are made one after the other.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making_decoder:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return decoder.decode(data)


@overload
def read(
    path: Path, kind: type[Content], schema: int, *, follow_symlinks: bool = True
) -> Content: ...
@overload
def read(path: Path, kind: Any, schema: int, *, follow_symlinks: bool = True) -> Any: ...
def read(path: Path, kind: Any, schema: int, *, follow_symlinks: bool = True) -> Any:
    """What the file says, as a `kind`. Raises as in the table above."""
    try:
        data = _bytes(path, follow_symlinks=follow_symlinks)
    except FileNotFoundError:
        raise
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        why = "is a symlink; not followed" if is_link else error.strerror or str(error)
        raise Unreadable(path, why) from error
    if len(data) > _BYTES_MAX:
        raise Damaged(path, f"is larger than {_BYTES_MAX >> 20} MiB, so it is none of ours")
    try:
        written_as = decode(data, _Header).schema
        if written_as != schema:
            raise OtherSchema(path, written_as)
        return decode(data, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(path, foreign.line(_said(error), _WHY_MAX)) from error


def _said(error: Exception) -> str:
    # msgspec quotes the pattern, which says nothing to an operator.
    broken = _PATTERN.fullmatch(str(error))
    return f"{broken[1]} is nothing that zvmsnap writes there" if broken else str(error)


def encoded(content: msgspec.Struct) -> bytes:
    """A struct as it stands in its file."""
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def write(path: Path, content: msgspec.Struct) -> None:
    """Write the file, or replace it, durably. Raises OSError."""
    write_atomic(path, encoded(content))


def _bytes(path: Path, *, follow_symlinks: bool) -> bytes:
    # O_NONBLOCK: a pipe that somebody put there does not make us wait.
    flags = os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda name, given: os.open(name, given | flags)) as file:
        # What it says of its length bounds nothing, but saves a buffer for the largest file.
        at_once = min(os.fstat(file.fileno()).st_size, _BYTES_MAX) + 1
        data = file.read(at_once)
        return data if len(data) < at_once else data + file.read(_BYTES_MAX + 1 - at_once)
