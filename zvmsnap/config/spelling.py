"""What somebody may have meant who has misspelt a word."""

from __future__ import annotations

from collections.abc import Iterable

_SIMILAR = 0.6  # difflib's own default


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar one of these, "" if none is similar."""
    import difflib  # no hook needs it that finds all in order

    return next(iter(difflib.get_close_matches(word.lower(), list(known), 1, _SIMILAR)), "")
