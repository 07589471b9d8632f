"""Files are encrypted with age(1), the program: Debian's package, in its stable releases since 11.

The bindings for Python are not in Debian. The program streams, and keeps 64 KiB in memory. What it
encrypts was compressed before, as pages of zeros are most of many an image: by hand it is

    age -d -i IDENTITY FILE.zst.age | zstd -d --sparse -o FILE

Keys are never on a command line: recipients are public, an identity is named by its file. age
authenticates each 64 KiB, and that the last is the last: what is changed or cut fails. It does not
say who has encrypted.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from zvmsnap.common import foreign
from zvmsnap.common.errors import EncryptionFailed
from zvmsnap.common.safe_files import created, sync_dir
from zvmsnap.ram.page_image import FILE_BYTES_MAX, RECORD_BYTES, ZERO_RECORD

SUFFIX = ".zst.age"

_CHUNK_BYTES = 1 << 20
_ZSTD_LEVEL = 3
_SAID_MAX = 64 << 10
_INSTALL = "apt install age"


@dataclass(frozen=True)
class Recipients:
    """Who can decrypt: public keys, and a file of such; nobody means that nothing is encrypted."""

    keys: tuple[str, ...] = ()
    file: str = ""

    def __bool__(self) -> bool:
        return bool(self.keys or self.file)

    def words(self) -> list[str]:
        """The arguments of age."""
        own = [word for key in self.keys for word in ("-r", key)]
        return [*own, "-R", self.file] if self.file else own

    def digest(self) -> str:
        """By which they are known again. Raises EncryptionFailed."""
        try:
            listed = Path(self.file).read_bytes() if self.file else b""
        except OSError as error:
            raise EncryptionFailed(f"{self.file}: cannot be read: {error.strerror}") from error
        return hashlib.sha256("\0".join(self.keys).encode() + b"\0\0" + listed).hexdigest()[:16]


NOBODY = Recipients()


def encrypt(source: IO[bytes], target: Path, recipients: Recipients) -> None:
    """Compress and encrypt all that is read from `source`; `target` appears when it is complete.

    Raises EncryptionFailed and OSError.
    """
    import zstandard

    with _appearing(target) as output:
        process = _start(recipients.words(), subprocess.PIPE, output)
        assert process.stdin
        compressor = zstandard.ZstdCompressor(_ZSTD_LEVEL, write_checksum=True)
        with _ending(process, str(target)):
            try:
                compressor.copy_stream(source, process.stdin, read_size=_CHUNK_BYTES)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, and says why


def decrypt(source: Path, target: Path, identity: str) -> None:
    """Decrypt and unpack; zeros become holes. `target` appears when it is complete and proven.

    Raises EncryptionFailed with what is wrong, and OSError.
    """
    with _appearing(target) as output:
        length_bytes = 0
        for data in _decrypted(source, identity, FILE_BYTES_MAX):
            length_bytes += len(data)
            if data == ZERO_RECORD[: len(data)]:
                output.seek(length_bytes)
            else:
                output.write(data)
        output.truncate(length_bytes)


def decrypted(source: Path, identity: str, limit_bytes: int) -> bytes:
    """A small file, decrypted and unpacked. Raises EncryptionFailed and OSError."""
    return b"".join(_decrypted(source, identity, limit_bytes))


def _decrypted(source: Path, identity: str, limit_bytes: int) -> Iterator[bytes]:
    """Records of it. All of it is proven only when this has ended."""
    import zstandard

    if not identity:
        raise EncryptionFailed(f"{source.name}: is encrypted: say --identity FILE")
    with source.open("rb") as encrypted:
        process = _start(["-d", "-i", identity], encrypted, subprocess.PIPE)
    output = process.stdout
    assert output
    with _ending(process, source.name):
        length_bytes = 0
        try:
            unpacked = zstandard.ZstdDecompressor().stream_reader(output, closefd=False)
            while data := unpacked.read(RECORD_BYTES):
                length_bytes += len(data)
                if length_bytes > limit_bytes:
                    raise EncryptionFailed(f"{source.name}: unpacks to more than it can be")
                yield data
            if output.read(1):
                raise EncryptionFailed(f"{source.name}: has something behind its end")
        except zstandard.ZstdError as error:
            output.close()  # it may have more to say, and would wait for ever
            _check_ended(process, source.name)
            raise EncryptionFailed(f"{source.name}: is damaged ({error})") from error


def _start(
    words: list[str], given: int | IO[bytes], output: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(["age", *words], stdin=given, stdout=output, stderr=subprocess.PIPE)
    except OSError as error:
        why = f"age cannot be run ({error.strerror}): {_INSTALL}"
        raise EncryptionFailed(why) from error


@contextmanager
def _ending(process: subprocess.Popen[bytes], name: str) -> Iterator[None]:
    """After the work the program has ended well. Raises EncryptionFailed with what it says."""
    try:
        yield
        _check_ended(process, name)
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        process.wait()


def _check_ended(process: subprocess.Popen[bytes], name: str) -> None:
    assert process.stderr
    said = process.stderr.read(_SAID_MAX)
    if process.wait():
        lines = [foreign.line(line) for line in said.split(b"\n")]
        first = next(filter(None, lines), "no reason given").removeprefix("age: error: ")
        raise EncryptionFailed(f"{name}: age failed: {first}")


@contextmanager
def _appearing(target: Path) -> Iterator[BinaryIO]:
    """A new file, which is durable and has its name when the work has ended well."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    with created(part) as descriptor:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            yield file
        os.fsync(descriptor)
        os.rename(part, target)
        sync_dir(target.parent)
