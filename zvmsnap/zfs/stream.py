"""Sends one snapshot as it differs from a bookmark; or reads what has changed since.

syncoid does so only if both sides have no snapshot in common; of an older one it would send what
the destination has already.

    zfs send -i DATASET#BOOKMARK SNAPSHOT | mbuffer | ssh HOST zfs receive -s TARGET

What has arrived when it is interrupted stays there, and syncoid goes on with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import struct
import subprocess
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import IO

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.ssh import RemoteHost, reason


def send_since_bookmark(
    bookmark: str, snapshot: str, target: str, remote: RemoteHost, *, raw: bool, bwlimit: str
) -> None:
    """Send it, to be received not mounted and read-only. `bwlimit` as mbuffer reads it.

    Raises ZfsFailed.
    """
    send = ["zfs", "send", *(["-w"] if raw else []), "-i", bookmark, snapshot]
    receive = ["zfs", "receive", "-s", "-u", "-o", "readonly=on", target]
    limit = [["mbuffer", "-q", "-s", "128k", "-m", "16M", "-R", bwlimit]] if bwlimit else []
    there = [*remote.ssh(), remote.host, shlex.join(receive)] if remote.host else receive
    _pipe([send, *limit, there], f"{remote.where}{target}")


def _pipe(commands: Sequence[Sequence[str]], target: str) -> None:
    """Run a pipeline. Raises ZfsFailed with what each command says that failed, the last first."""
    running: list[subprocess.Popen[bytes]] = []
    output: IO[bytes] | None = None
    try:
        for command in commands:
            process = subprocess.Popen(
                command,
                stdin=output or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            if output:
                output.close()
            output = process.stdout
            running.append(process)
        said = [process.communicate()[1] for process in reversed(running)]
    except OSError as error:
        _stop(running)
        raise ZfsFailed(f"{commands[len(running)][0]} cannot be run: {error.strerror}") from error
    except BaseException:
        _stop(running)
        raise
    ended = list(zip(reversed(running), said, strict=True))
    if any(process.returncode for process in running):
        # Who was only in the pipe of the one that failed has nothing to say.
        reasons = [reason(stderr) for process, stderr in ended if process.returncode and stderr]
        raise ZfsFailed(f"{target}: {'; '.join(reasons) or 'the stream broke off'}")


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    for process in running:
        process.wait()


# -- what a stream says has changed
#
# By OpenZFS's zfs_ioctl.h (dmu_replay_record): 312 bytes each, in the sender's byte order, and for
# some types a payload behind it.

_RECORD_BYTES = 312
_MAGIC = 0x2F5BACBAC
_BEGIN, _OBJECT, _FREEOBJECTS, _WRITE, _FREE, _END = range(6)
_SPILL, _WRITE_EMBEDDED = 7, 8
_TWO, _THREE = struct.Struct("<8xQQ"), struct.Struct("<8xQQQ")
_LENGTH = struct.Struct("<4xIQ")  # of a payload, and of the first record the magic
_OBJECT_PAYLOAD = struct.Struct("<28xI4xI")
_WRITE_HEAD = struct.Struct("<8xQ8xQQ")
_COMPRESSION_AT, _COMPRESSED = 50, struct.Struct("<96xQ")
_SPILL_PAYLOAD = struct.Struct("<16xQ16xQ")
_EMBEDDED_PAYLOAD = struct.Struct("<52xI")
_SKIP_BYTES = 1 << 20
VOLUME_OBJECT = 1


class NotUnderstood(ZfsFailed):
    """A stream has what this version does not know: nothing can be concluded from it."""


def changed_ranges(
    since: str, snapshot: str, objects: AbstractSet[int]
) -> dict[int, list[tuple[int, int]]]:
    """Begin and end of all that was written or freed in these objects between both.

    `since` is an earlier snapshot of the same dataset (DATASET@NAME) or a bookmark. Of a volume
    the object is VOLUME_OBJECT, of a file its inode number. An end may lie far behind that of the
    file. Streamed: all data of the dataset that has changed is read. Raises NotUnderstood, also if
    an object was made anew, and ZfsFailed.
    """
    command = ["zfs", "send", "-c", "-i", since, snapshot]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ZfsFailed(f"zfs cannot be run: {error.strerror}") from error
    assert process.stdout and process.stderr
    try:
        ranges = read_ranges(process.stdout, objects)
        while process.stdout.read(_SKIP_BYTES):
            pass
        said = process.stderr.read()
        if process.wait():
            raise ZfsFailed(f"{snapshot}: zfs send failed: {reason(said)}")
        return ranges
    except BaseException:
        _stop([process])
        raise
    finally:
        process.stdout.close()
        process.stderr.close()


def read_ranges(stream: IO[bytes], objects: AbstractSet[int]) -> dict[int, list[tuple[int, int]]]:
    """As `changed_ranges`, of what `zfs send` prints."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    kind = -1
    while kind != _END:
        record = stream.read(_RECORD_BYTES)
        if len(record) != _RECORD_BYTES:
            raise NotUnderstood("the stream of zfs send ends too early")
        is_first = kind == -1
        kind = int.from_bytes(record[:4], "little")
        if is_first and (kind != _BEGIN or _LENGTH.unpack_from(record)[1] != _MAGIC):
            raise NotUnderstood("the stream of zfs send begins with something else")
        payload_bytes = 0
        if kind == _BEGIN:
            payload_bytes = _LENGTH.unpack_from(record)[0]
        elif kind == _OBJECT:
            bonus, raw_bonus = _OBJECT_PAYLOAD.unpack_from(record)
            payload_bytes = raw_bonus or _rounded(bonus)
        elif kind == _FREEOBJECTS:
            first, count = _TWO.unpack_from(record)
            if any(first <= each < first + count for each in objects):
                raise NotUnderstood("a file was removed, and made anew")
        elif kind == _WRITE:
            number, begin, logical = _WRITE_HEAD.unpack_from(record)
            compressed = record[_COMPRESSION_AT] != 0
            payload_bytes = _COMPRESSED.unpack_from(record)[0] if compressed else logical
            _add(ranges, objects, number, begin, begin + logical)
        elif kind == _FREE:
            number, begin, length = _THREE.unpack_from(record)
            _add(ranges, objects, number, begin, begin + length)
        elif kind == _SPILL:
            length, compressed_length = _SPILL_PAYLOAD.unpack_from(record)
            payload_bytes = compressed_length or length
        elif kind == _WRITE_EMBEDDED:
            number, begin, length = _THREE.unpack_from(record)
            payload_bytes = _rounded(_EMBEDDED_PAYLOAD.unpack_from(record)[0])
            _add(ranges, objects, number, begin, begin + length)
        elif kind != _END:
            raise NotUnderstood(f"the stream of zfs send has a record of type {kind}")
        _skip(stream, payload_bytes)
    return ranges


def _rounded(count: int) -> int:
    return (count + 7) // 8 * 8


def _add(
    ranges: dict[int, list[tuple[int, int]]],
    objects: AbstractSet[int],
    number: int,
    begin: int,
    end: int,
) -> None:
    if number not in objects:
        return
    known = ranges.setdefault(number, [])
    if known and known[-1][0] <= begin <= known[-1][1]:
        known[-1] = (known[-1][0], max(end, known[-1][1]))
    else:
        known.append((begin, end))


def _skip(stream: IO[bytes], count: int) -> None:
    while count:
        data = stream.read(min(count, _SKIP_BYTES))
        if not data:
            raise NotUnderstood("the stream of zfs send ends too early")
        count -= len(data)
