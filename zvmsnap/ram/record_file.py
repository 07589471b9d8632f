"""`memory.pages` while it is written: records in any order, compared with those of a clone's base.

The file may begin as a block clone of an older image. That one is never trusted: a record is left
as it is only if it was read and is the same, and whatever the stream does not have becomes a hole.

| a record is now | the file has there     | what is done                                  |
|-----------------|------------------------|-----------------------------------------------|
| the same        | the same, by reading   | nothing: the file system shares it            |
| different       | anything               | written                                       |
| zeros           | data, or may have some | a hole                                        |
| sent again      | what was sent before   | its old digest goes from the sum              |
"""

from __future__ import annotations

import os

from zvmsnap.ram.hole import punch
from zvmsnap.ram.page_image import RECORD_BYTES, ZERO_RECORD, record_digest
from zvmsnap.ram.ranges import Ranges
from zvmsnap.ram.whole import write_at

_CHUNK_BYTES = 64 * RECORD_BYTES


class RecordFile:
    """Writes pages at their places; `total` is the sum of the digests of its records, `count`
    their number without those of zeros; `written` were not shared.

    `cloned`: the file begins as a copy of another image, else it is one hole. All raise OSError.
    """

    def __init__(self, file: int, length_bytes: int, *, cloned: bool) -> None:
        self.total = 0
        self.count = 0
        self.written = 0
        self.shared = 0
        self.sent = Ranges()
        self._file = file
        self._cloned = cloned
        self._length_bytes = length_bytes
        self._place = -1  # of the record that is open; none if negative
        self._open = bytearray(RECORD_BYTES)
        os.ftruncate(file, length_bytes)

    def put(self, place: int, length_bytes: int, data: bytes | None) -> None:
        """Pages from `place` on; zeros without `data`. Raises NotUnderstood if sent in no order."""
        at = 0
        while at < length_bytes:
            here = place + at
            whole = (length_bytes - at) // RECORD_BYTES * RECORD_BYTES
            if here % RECORD_BYTES or not whole or self._is_known(here, whole):
                count = min(length_bytes - at, RECORD_BYTES - here % RECORD_BYTES)
                self._put_pages(here, count, data[at : at + count] if data else None)
            elif data is None:
                count = whole
                self._zero(here, count)
            else:
                count = min(whole, _CHUNK_BYTES)
                self._fresh(here, data[at : at + count])
            self.sent.add(here, here + count)
            at += count

    def finish(self) -> None:
        """Make all that was not sent a hole, and the file durable."""
        self._close()
        if self._cloned:
            for begin, end in self.sent.gaps(self._length_bytes):
                punch(self._file, begin, end - begin)
        os.fsync(self._file)

    def _is_known(self, place: int, count: int) -> bool:
        """Was any page of these records sent before?"""
        return self.sent.touches(place, place + count)

    def _put_pages(self, place: int, count: int, data: bytes | None) -> None:
        """Pages of one record."""
        at = place % RECORD_BYTES
        if self._place != place - at:
            self._close()
            self._load(place - at)
        self._open[at : at + count] = data or bytes(count)

    def _load(self, place: int) -> None:
        """Open a record: with what was sent of it, without what its base has."""
        self._place = place
        self._open[:] = ZERO_RECORD
        if self._is_known(place, RECORD_BYTES):
            record = os.pread(self._file, RECORD_BYTES, place)
            self._open[:] = record
            if record != ZERO_RECORD:
                self.total -= int.from_bytes(record_digest(place, record))
                self.count -= 1

    def _close(self) -> None:
        if self._place >= 0:
            record, place = bytes(self._open), self._place
            self._place = -1
            if record == ZERO_RECORD:
                punch(self._file, place, RECORD_BYTES)
            else:
                self._records(place, record)

    def _fresh(self, place: int, data: bytes) -> None:
        """Whole records that were never sent before."""
        self._close()
        for at in range(0, len(data), RECORD_BYTES):
            record = data[at : at + RECORD_BYTES]
            if record == ZERO_RECORD:
                self._zero(place + at, RECORD_BYTES)
            else:
                self._records(place + at, record)

    def _records(self, place: int, record: bytes) -> None:
        self.total += int.from_bytes(record_digest(place, record))
        self.count += 1
        if self._cloned and os.pread(self._file, RECORD_BYTES, place) == record:
            self.shared += 1
            return
        write_at(self._file, record, place)
        self.written += 1

    def _zero(self, place: int, count: int) -> None:
        """Whole records of zeros that were never sent before."""
        self._close()
        if self._cloned:
            punch(self._file, place, count)
