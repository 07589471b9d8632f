"""Screens of guests that were started from points, as small pictures inside the page.

A file in the vault may be anything: only a whole PNG of a few blocks, with nothing else in it and
nothing behind it, becomes part of the page.
"""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from zvmsnap.common import foreign, safe_files
from zvmsnap.points.point import RestorePoint, vault_of
from zvmsnap.points.verify_result import SCREEN, VerifyResult
from zvmsnap.report.facts import Screen, amount

LARGEST_BYTES = 96 << 10  # of one picture
ALL_BYTES = 700 << 10  # of all: the page has a third more for each byte
PER_GUEST = 3

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDE_MAX = 4096
# What a picture consists of, and what says how it looks; no text, no movie, nothing of others.
_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"pHYs", b"sRGB"))


def screens_of(started: Sequence[tuple[RestorePoint, VerifyResult]]) -> list[Screen]:
    """Those of the newest points of a guest that were started, the newest first."""
    found = (_screen(point, result) for point, result in started[::-1])
    kept = [screen for screen in found if screen]
    return kept[:PER_GUEST]


def within_limit(screens: Sequence[Sequence[Screen]]) -> list[list[Screen]]:
    """The screens of all guests, as many as the page may have: first the newest of each."""
    left_bytes = ALL_BYTES
    chosen: dict[int, Screen] = {}
    for screen in filter(None, chain.from_iterable(zip_longest(*screens))):
        if len(screen.png) > left_bytes:
            chosen[id(screen)] = Screen(screen.run, screen.caption, why_not="the page is full")
            continue
        left_bytes -= len(screen.png)
        chosen[id(screen)] = screen
    return [[chosen[id(screen)] for screen in own] for own in screens]


def data_uri(png: bytes) -> str:
    """The picture as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def why_no_picture(data: bytes) -> str:
    """Why that is no PNG that may be shown; "" if it is one."""
    if not data.startswith(_SIGNATURE):
        return "is no PNG"
    kinds: list[bytes] = []
    try:
        for kind, content in _chunks(data):
            if kind not in _CHUNKS:
                return f"has a part {foreign.line(kind)!r}, which is not expected"
            if not kinds and (kind != b"IHDR" or len(content) != 13):
                return "does not begin as a PNG does"
            if kind == b"IHDR":
                width, height = struct.unpack(">II", content[:8])
                if not (0 < width <= _SIDE_MAX and 0 < height <= _SIDE_MAX):
                    return f"is {width} x {height}"
            kinds.append(kind)
    except ValueError as error:
        return str(error)
    if kinds.count(b"IHDR") != 1 or b"IDAT" not in kinds or kinds[-1] != b"IEND":
        return "is not complete"
    return ""


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The parts of a PNG until its end. Raises ValueError if one is cut off or changed."""
    at = len(_SIGNATURE)
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError("is cut off")
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) != 4:
            raise ValueError("is cut off")
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum):
            raise ValueError("is damaged")
        yield kind, content
        at += 12 + length
        if kind == b"IEND" and at < len(data):
            raise ValueError("has something behind its end")


def _screen(point: RestorePoint, result: VerifyResult) -> Screen | None:
    """The screen of a point; None if none was kept."""
    run = point.directory.name
    caption = f"started after {result.to_running_s:.1f} s: {result.alive}"
    try:
        size_bytes = os.lstat(point.directory / SCREEN).st_size
        if size_bytes > LARGEST_BYTES:
            why = f"{amount(size_bytes)} are too large for this page"
            return Screen(run, caption, why_not=why)
        with safe_files.opened_within(point.directory, [vault_of(point.directory)]) as directory:
            png = safe_files.read(SCREEN, directory, LARGEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Screen(run, caption, why_not=foreign.line(str(error)))
    if why := why_no_picture(png):
        return Screen(run, caption, why_not=why)
    return Screen(run, caption, png)
