"""Completes points on the command line, in bash, zsh and fish. Fails silently: no completions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, MutableMapping

from zvmsnap.config.settings import load_settings
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.selector import LATEST

_SHELL = "_ZVMSNAP_COMPLETE"  # typer's own, as are bash's COMP_WORDS and COMP_CWORD
_CUT_OFF = "_ZVMSNAP_COMPLETE_CUT_OFF"
_BREAKS = frozenset("@:")


def points(incomplete: str) -> list[str]:
    """What the word that begins so may become; for typer.Argument(autocompletion=...)."""
    try:
        settings = load_settings()
        vault.check(settings)
        known = [
            each for each in vault.entries(settings.vault_dir) if isinstance(each, RestorePoint)
        ]
        cut_off = os.environ.get(_CUT_OFF, "")
        return [word.removeprefix(cut_off) for word in words(known, cut_off + incomplete)]
    except Exception:
        # Whatever it is, a traceback in the middle of somebody's typing helps nobody.
        return []


def words(known: Iterable[RestorePoint], incomplete: str) -> list[str]:
    """Guests first; the names of a guest's points once it is clear which guest is meant.

    Never `GUEST@` as the only one: a shell would put a space behind it.
    """
    names: dict[str, dict[str, None]] = {}
    for point in known:
        own = names.setdefault(point.manifest.domain, {LATEST: None})
        own |= dict.fromkeys((point.directory.name, point.manifest.run))
        own |= dict.fromkeys(tie.name for tie in point.manifest.snapshots)
    guests = [domain for domain in names if f"{domain}@".startswith(incomplete)]
    if len(guests) > 1:
        found = [f"{domain}@" for domain in guests]
    else:
        found = [f"{domain}@{name}" for domain, own in names.items() for name in own]
    # What a shell would read as something else cannot be completed without quotes.
    return sorted(
        word for word in found if word.startswith(incomplete) and shlex.quote(word) == word
    )


def join_words_of_bash(environ: MutableMapping[str, str]) -> None:
    """Give typer one word where bash has split one at `@` and `:`, as COMP_WORDBREAKS says.

    Readline replaces only the part behind the last `:`, or from the last `@` on; so that is what
    typer shall complete, and `points` learns through the environment what stands before it. Does
    nothing unless typer was called by its completion script for bash.
    """
    if environ.get(_SHELL) != "complete_bash":
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
