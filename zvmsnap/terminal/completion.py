"""Completes points on the command line, in bash, zsh and fish. After an error: no completions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, MutableMapping

from zvmsnap.config.settings import load_settings
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.selector import LATEST

SHELL = "_ZVMSNAP_COMPLETE"  # typer's own, as are bash's COMP_WORDS and COMP_CWORD
_CUT_OFF = "_ZVMSNAP_COMPLETE_CUT_OFF"
_BREAKS = frozenset("@:")


def points(incomplete: str) -> list[str]:
    """The completions of a word, for typer.Argument(autocompletion=...)."""
    try:
        settings = load_settings()
        vault.check(settings)
        readable = [
            each for each in vault.entries(settings.vault_dir) if isinstance(each, RestorePoint)
        ]
        cut_off = os.environ.get(_CUT_OFF, "")
        return [word.removeprefix(cut_off) for word in words(readable, cut_off + incomplete)]
    except Exception:
        # Nobody wants a traceback in the line that they type.
        return []


def words(points: Iterable[RestorePoint], incomplete: str) -> list[str]:
    """First the guests; the names of a guest's points as soon as only one guest is possible.

    `GUEST@` is never the only completion: a shell would put a space behind it.
    """
    names: dict[str, dict[str, None]] = {}
    for point in points:
        of_guest = names.setdefault(point.manifest.domain, {LATEST: None})
        of_guest |= dict.fromkeys((point.directory.name, point.manifest.run))
        of_guest |= dict.fromkeys(snapshot.name for snapshot in point.manifest.snapshots)
    guests = [domain for domain in names if f"{domain}@".startswith(incomplete)]
    if len(guests) > 1:
        candidates = [f"{domain}@" for domain in guests]
    else:
        candidates = [f"{domain}@{name}" for domain, own in names.items() for name in own]
    # A word that needs quotes in a shell cannot be completed without them.
    return sorted(
        word for word in candidates if word.startswith(incomplete) and shlex.quote(word) == word
    )


def join_words_of_bash(environ: MutableMapping[str, str]) -> None:
    """Join the words that bash has split at `@` and `:` (COMP_WORDBREAKS) into one for typer.

    Readline replaces only what is behind the last `:`, or from the last `@` on. So typer is given
    this to complete, and `points` reads what is before it from the environment. Does nothing
    unless typer was called by its completion script for bash.
    """
    if environ.get(SHELL) != "complete_bash":
        return
    split = environ.get("COMP_WORDS", "").split("\n")
    last = int(environ.get("COMP_CWORD", "0"))
    if not 0 < last < len(split):
        return
    first = last
    while first > 1 and (_is_break(split[first]) or _is_break(split[first - 1])):
        first -= 1
    whole = "".join(split[first : last + 1])
    replaced = "" if _is_break(split[last]) else split[last]
    if whole.removesuffix(replaced).endswith("@"):
        replaced = f"@{replaced}"
    environ[_CUT_OFF] = whole.removesuffix(replaced)
    environ["COMP_WORDS"] = "\n".join([*split[:first], replaced])
    environ["COMP_CWORD"] = str(first)


def _is_break(word: str) -> bool:
    return bool(word) and _BREAKS.issuperset(word)
