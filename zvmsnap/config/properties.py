"""The properties zvmsnap:... of datasets, as docs/reference/properties.md describes them. Pure.

ZFS takes any name and any value, so what is misspelt would be ignored without a word. A mode is not
checked here: whose guests it is for, those get an error line (capture/eligibility). Where it is not
understood how long RAM is to be kept, none goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import AgeInvalid, KeepInvalid
from zvmsnap.config.age import VALUES as AGES
from zvmsnap.config.age import parse_age
from zvmsnap.config.keep import VALUES, parse_keep
from zvmsnap.config.mode import OFF
from zvmsnap.config.spelling import nearest

PREFIX = "zvmsnap:"
MODE = f"{PREFIX}mode"
RECURSIVE = f"{PREFIX}recursive"
GROUP = f"{PREFIX}group"
VAULT = f"{PREFIX}vault"
CLONE = f"{PREFIX}clone"
KEEP_MEMORY = f"{PREFIX}keep-memory"
TEMPORARY = f"{PREFIX}temporary"
WARN_AGE = f"{PREFIX}warn-age"
CRIT_AGE = f"{PREFIX}crit-age"
KEEP_MEMORY_OF = {each: f"{KEEP_MEMORY}:{each}" for each in snapshot_name.TYPES}
NAMES = (
    MODE,
    *(f"{MODE}:{each}" for each in snapshot_name.TYPES),
    RECURSIVE,
    GROUP,
    VAULT,
    CLONE,
    TEMPORARY,
    KEEP_MEMORY,
    *KEEP_MEMORY_OF.values(),
    WARN_AGE,
    CRIT_AGE,
)
ON = "on"
_LIKE_ON = ("yes", "true", "1", "enable", "enabled", "zfs")


@dataclass(frozen=True)
class Property:
    """A user property: the dataset that it was set on, its name and its value."""

    dataset: str
    name: str
    value: str


def faults(found: Iterable[Property]) -> list[str]:
    """Which of these properties mean nothing, each once, and the nearest that mean something."""
    return [fault for each in dict.fromkeys(found) if (fault := _fault(each))]


def _fault(found: Property) -> str:
    where = f"{found.dataset}: {found.name}={found.value!r} is ignored"
    if found.name not in NAMES:
        known = [name.removeprefix(PREFIX) for name in NAMES]
        near = nearest(found.name.removeprefix(PREFIX), known)
        hint = f"; is {PREFIX}{near} meant?" if near else f"; it knows {', '.join(NAMES)}"
        return f"{where}: zvmsnap knows no such property{hint}"
    if found.name == RECURSIVE and found.value not in (ON, OFF):
        near = ON if found.value.lower() in (ON, *_LIKE_ON) else OFF
        return f"{where}: its values are {ON} and {OFF}; is {near} meant?"
    if found.name.startswith(KEEP_MEMORY) and not _says_how_long(found.value):
        what = f"{found.dataset}: {found.name}={found.value!r} says not how long RAM is kept"
        return f"{what}, so none goes before its point: say {VALUES}"
    if found.name in (WARN_AGE, CRIT_AGE) and not _is_age(found.value):
        return f"{where}: say {AGES}"
    return ""


def _is_age(value: str) -> bool:
    try:
        parse_age(value)
        return True
    except AgeInvalid:
        return False


def _says_how_long(value: str) -> bool:
    try:
        parse_keep(value)
        return True
    except KeepInvalid:
        return False
