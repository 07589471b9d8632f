"""`memory.pages` while it is written: records in any order, compared with those of a base.

The file may begin as a block clone of an older image, its base. That one is never trusted: a record
is left as it is only if it was read and is the same, and whatever was not sent becomes a hole.

| a record is now | the file has there           | what is done                                    |
|-----------------|------------------------------|-------------------------------------------------|
| the same        | the same, by reading         | nothing: the file system shares it              |
| different       | anything                     | written                                         |
| anything        | what the disk cannot read    | written                                         |
| zeros           | data, or may have some       | a hole                                          |
| sent again      | what was sent before         | its old digest goes from the sum                |
"""

from __future__ import annotations

import os

from zvmsnap.bulk.writing import EarlyFlush, punch, write_at
from zvmsnap.ram.page_image import RECORD_BYTES, ZERO_RECORD, record_digest
from zvmsnap.ram.ranges import Ranges

_CHUNK_BYTES = 64 * RECORD_BYTES


class RecordFile:
    """Writes pages at their places. All methods raise OSError.

    `total` is the sum of the digests of all records but those of zeros, as they were sent, `count`
    their number; `written` how many times a record was written. `sent` has the bytes that were
    sent. `cloned`: the file begins as a copy of a base, else it is empty.
    """

    def __init__(self, file: int, length_bytes: int, *, cloned: bool) -> None:
        self.total = 0
        self.count = 0
        self.written = 0
        self.sent = Ranges()
        self._file = file
        self._cloned = cloned
        self._flush = EarlyFlush(file)
        self._length_bytes = length_bytes
        self._place = -1  # of the record that is open; none if negative
        self._open = bytearray(RECORD_BYTES)
        self._had_data = False
        os.ftruncate(file, length_bytes)

    def put(self, place: int, length_bytes: int, data: bytes | None) -> None:
        """Pages from `place` on; zeros without `data`. Raises NotUnderstood if sent in no order."""
        at = 0
        while at < length_bytes:
            here = place + at
            whole = (length_bytes - at) // RECORD_BYTES * RECORD_BYTES
            if here % RECORD_BYTES or not whole or self.sent.touches(here, here + whole):
                count = min(length_bytes - at, RECORD_BYTES - here % RECORD_BYTES)
                self._put_pages(here, count, data[at : at + count] if data else bytes(count))
            elif data is None:
                count = whole
                self._close()
                self._zero(here, count)
            else:
                count = min(whole, _CHUNK_BYTES)
                self._close()
                self._put_records(here, data[at : at + count])
            self.sent.add(here, here + count)
            at += count

    def finish(self) -> None:
        """Make all that was not sent a hole, and the file durable."""
        self._close()
        for begin, end in self.sent.gaps(self._length_bytes):
            self._zero(begin, end - begin)
        os.fsync(self._file)

    # -- pages of one record

    def _put_pages(self, place: int, count: int, data: bytes) -> None:
        at = place % RECORD_BYTES
        if self._place != place - at:
            self._close()
            self._load(place - at)
        self._open[at : at + count] = data

    def _load(self, place: int) -> None:
        """Open a record, with what was sent of it before."""
        self._place = place
        self._had_data = self._cloned
        self._open[:] = ZERO_RECORD
        if self.sent.touches(place, place + RECORD_BYTES):
            record = os.pread(self._file, RECORD_BYTES, place)
            self._open[:] = record
            if record != ZERO_RECORD:
                self._had_data = True
                self.total -= int.from_bytes(record_digest(place, record))
                self.count -= 1

    def _close(self) -> None:
        if self._place < 0:
            return
        record, place = bytes(self._open), self._place
        self._place = -1
        if record == ZERO_RECORD and self._had_data:
            punch(self._file, place, RECORD_BYTES)
        elif record != ZERO_RECORD:
            self._put_records(place, record)

    # -- whole records

    def _put_records(self, place: int, data: bytes) -> None:
        """Records that were not sent before, or are sent again."""
        base = self._base(place, len(data))
        begin = 0
        for at in range(0, len(data), RECORD_BYTES):
            if self._is_there(
                place + at, data[at : at + RECORD_BYTES], base[at : at + RECORD_BYTES]
            ):
                self._write(place, data, begin, at)
                begin = at + RECORD_BYTES
        self._write(place, data, begin, len(data))

    def _is_there(self, place: int, record: bytes, base: bytes) -> bool:
        """Need it not be written? Its digest is added up."""
        if record == ZERO_RECORD:
            self._zero(place, RECORD_BYTES)
            return True
        self.total += int.from_bytes(record_digest(place, record))
        self.count += 1
        return record == base

    def _write(self, place: int, data: bytes, begin: int, end: int) -> None:
        if begin < end:
            write_at(self._file, data[begin:end], place + begin)
            self.written += (end - begin) // RECORD_BYTES
            self._flush.wrote(end - begin)

    def _zero(self, place: int, count: int) -> None:
        if self._cloned:
            punch(self._file, place, count)

    def _base(self, place: int, count: int) -> bytes:
        """What the base has there; nothing if there is none, or the disk cannot read it."""
        if not self._cloned:
            return b""
        try:
            return os.pread(self._file, count, place)
        except OSError:
            return b""
