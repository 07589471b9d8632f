"""Text from elsewhere, made printable: what guests, programs, other machines and files say.

| where it is                              | what is done                                      |
|------------------------------------------|---------------------------------------------------|
| it enters: an error, a reason, an answer | `line`: it becomes one short line                 |
| it is part of an error of ours           | ZvmsnapError: `printable`                         |
| it leaves: log lines, output for people  | `printable`, whatever was done before             |
| JSON for programs, names, paths          | nothing: they stay as they are, and JSON escapes  |

Some characters are commands to a terminal, or let text look like another: they would lie to whoever
reads it.
"""

from __future__ import annotations

LINE_MAX = 1000  # characters: the end of QEMU's log, in an error of libvirt, may be as long
PRINTED_MAX = 16_000  # of one line that leaves: a list of 100 guests or datasets is shorter

_END_BYTES = 64 << 10  # of a program's errors, in which the last line is looked for
_LOWEST_SURROGATE = 0xDC00  # with it "surrogateescape" marks a byte that is no UTF-8
_BYTES = range(0xDC80, 0xDD00)


def printable(text: str, at_most: int = PRINTED_MAX) -> str:
    """The text in one line that may be printed anywhere, cut after so many characters.

    Escaped are line breaks and other control characters, marks that change the direction of
    writing or are not seen, surrogates, and characters that do not exist.
    """
    if text.isprintable() and len(text) <= at_most:
        return text
    shown = "".join(map(_shown, text[: at_most + 1]))
    return shown if len(shown) <= at_most else f"{shown[: at_most - 1]}…"


def line(said: str | bytes, at_most: int = LINE_MAX) -> str:
    """What somebody else says, in one short line; line breaks and tabs become blanks."""
    text = said.decode(errors="surrogateescape") if isinstance(said, bytes) else said
    return printable(" ".join(text[: 8 * at_most].split()), at_most)


def last_line(said: bytes, at_most: int = LINE_MAX) -> str:
    """The last line of a program's errors that is not empty: it mostly has the reason."""
    lines = (line(each, at_most) for each in reversed(said[-_END_BYTES:].split(b"\n")))
    return next(filter(None, lines), "")


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if ord(character) in _BYTES:
        return f"\\x{ord(character) - _LOWEST_SURROGATE:02x}"
    return character.encode("unicode_escape").decode()
