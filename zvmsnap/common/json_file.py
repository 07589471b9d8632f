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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, overload

import msgspec

from zvmsnap.common import foreign
from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.common.safe_files import write_atomic

Content = TypeVar("Content")
Kind = TypeVar("Kind", bound=msgspec.Struct)

# A manifest with 10 000 snapshots has 3 MB.
_BYTES_MAX = 64 << 20
_AT_ONCE_BYTES = 1 << 20
_PATTERN = re.compile(r"Expected `str` matching regex .* - at `(\$[^`]*)`")
_KNOWN_MAX = 4096  # texts; checksums are all different, and need not be known
_WHY_MAX = 300  # characters: an error may quote the value that it found


class Unreadable(ZvmsnapError):
    """A file of ours cannot be read: `path`, and why."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = Path(path)
        self.why = why


class Damaged(Unreadable):
    """It was read, and is not what this version, or any other, has written."""


class OtherSchema(Unreadable):
    """Another version of zvmsnap has written it, which alone knows what it says."""

    def __init__(self, path: Path | str, schema: int) -> None:
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
    path: Path | str,
    kind: type[Content],
    schema: int,
    *,
    follow_symlinks: bool = True,
    by: Callable[[bytes], Content] | None = None,
) -> Content: ...
@overload
def read(path: Path | str, kind: Any, schema: int, *, follow_symlinks: bool = True) -> Any: ...
def read(
    path: Path | str,
    kind: Any,
    schema: int,
    *,
    follow_symlinks: bool = True,
    by: Callable[[bytes], Any] | None = None,
) -> Any:
    """What the file says, as a `kind`; `by` decodes it as `decode` would.

    Raises as in the table above.
    """
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
        return by(data) if by else decode(data, kind)
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


def _bytes(path: Path | str, *, follow_symlinks: bool) -> bytes:
    # O_NONBLOCK: a pipe that somebody put there does not make us wait.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    # Not open(): a command may read 40 000 files, and that takes twice as long.
    descriptor = os.open(path, flags)
    try:
        # What it says of its length bounds nothing, but saves a buffer for the largest file.
        length = min(os.fstat(descriptor).st_size, _BYTES_MAX)
        data = os.read(descriptor, length + 1)
        return data if len(data) == length else data + _rest(descriptor, len(data))
    finally:
        os.close(descriptor)


def _rest(descriptor: int, had_bytes: int) -> bytes:
    """What is left of a file that does not say how long it is, up to one byte too much."""
    parts: list[bytes] = []
    while had_bytes <= _BYTES_MAX:
        part = os.read(descriptor, min(_BYTES_MAX + 1 - had_bytes, _AT_ONCE_BYTES))
        if not part:
            break
        parts.append(part)
        had_bytes += len(part)
    return b"".join(parts)


# -- many files of a kind
#
# msgspec searches for a pattern in each text, which takes longer than all else that it does. Of
# many files most texts are the same: names of guests and datasets, words. So a struct is decoded as
# one with the same fields and without patterns, and each text is looked up among those that are
# known to be as they must be. That also keeps one string for all files.


class _Known(dict[str, str]):
    """Texts that are as they must be, each by itself. Raises msgspec.ValidationError."""

    def __init__(self, must_be: msgspec.Meta) -> None:
        super().__init__()
        assert must_be == msgspec.Meta(pattern=must_be.pattern, max_length=must_be.max_length)
        self._pattern = re.compile(must_be.pattern or "")
        self._max_length = must_be.max_length

    def __missing__(self, text: str) -> str:
        is_long = self._max_length is not None and len(text) > self._max_length
        if is_long or not self._pattern.search(text):
            raise msgspec.ValidationError("a text is not as it must be")
        if len(self) < _KNOWN_MAX:
            self[text] = text
        return text


class Struct(Generic[Kind]):
    """A kind of struct: `unchecked` has the same fields, and is what to decode."""

    def __init__(self, kind: type[Kind], known: dict[Any, _Known], instead: dict[str, Any]) -> None:
        fields = msgspec.structs.fields(kind)
        self._kind = kind
        self._names = [each.name for each in fields]
        self._texts = [
            (number, known.setdefault(each.type, _Known(must_be)))
            for number, each in enumerate(fields)
            if (must_be := _of_text(each.type))
        ]
        self.unchecked = msgspec.defstruct(
            kind.__name__,
            [_unchecked(each, instead) for each in fields],
            frozen=True,
            kw_only=True,
            gc=False,
        )

    def checked(self, decoded: msgspec.Struct) -> Kind:
        """The struct itself. Raises msgspec.ValidationError."""
        return self._kind(*self._values(decoded))

    def fields(self, decoded: msgspec.Struct) -> dict[str, Any]:
        """All fields, by name. Raises msgspec.ValidationError."""
        return dict(zip(self._names, self._values(decoded), strict=True))

    def _values(self, decoded: msgspec.Struct) -> list[Any]:
        values = list(msgspec.structs.astuple(decoded))
        for number, known in self._texts:
            values[number] = known[values[number]]
        return values


class Texts:
    """What is known of texts, by what they must be."""

    def __init__(self) -> None:
        self._known: dict[Any, _Known] = {}

    def of(self, kind: type[Kind], **instead: Any) -> Struct[Kind]:
        """A kind of struct; `instead` has other types for some of its fields.

        Its texts are those of which each is a `str` that must be something (msgspec.Meta).
        """
        return Struct(kind, self._known, instead)


def _of_text(kind: Any) -> msgspec.Meta | None:
    """What a text must be; None if that is the type of no text, or of any."""
    if get_origin(kind) is not Annotated or get_args(kind)[0] is not str:
        return None
    must_be = get_args(kind)[1]
    assert isinstance(must_be, msgspec.Meta)
    return must_be


def _unchecked(field: msgspec.structs.FieldInfo, instead: dict[str, Any]) -> tuple[Any, ...]:
    kind = instead.get(field.name, str if _of_text(field.type) else field.type)
    if field.required:
        return field.name, kind
    return field.name, kind, msgspec.Raw() if kind is msgspec.Raw else field.default
