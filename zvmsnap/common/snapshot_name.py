"""Names of datasets and snapshots: what ZFS allows, and what sanoid puts into them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

import msgspec

from zvmsnap.common.errors import HookEnvironmentInvalid

MANUAL = "manual"
SANOID_TYPES = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly")

# What a property zvmsnap:mode:TYPE may be named for.
TYPES = (*SANOID_TYPES, MANUAL)

# zfs(8), "naming": letters, digits and _ - : . and blanks; components are divided by slashes.
_COMPONENT = r"[A-Za-z0-9_.:\- ]+"
_DATASET = re.compile(rf"(?!.*(?:^|/)\.{{1,2}}(?:/|$))[A-Za-z]{_COMPONENT[:-1]}*(?:/{_COMPONENT})*")
_SNAPNAME = re.compile(_COMPONENT)
_NAME_MAX = 255

# Names in our own files, which may be damaged or come from elsewhere. They become words of command
# lines, and of paths: nothing in them may be taken for an option, for two words, or lead upwards.
# Not exactly zfs(8).
_SAFE_DATASET = r"(?![^@]*/\.{0,2}(?:[/@]|\Z))[A-Za-z0-9][^\x00-\x1f\x7f@]*"
_SAFE_NAME = r"[^\x00-\x1f\x7f@/]+"
_SAFE_SNAPSHOT = re.compile(f"{_SAFE_DATASET}@{_SAFE_NAME}")
DatasetName = Annotated[str, msgspec.Meta(pattern=rf"\A{_SAFE_DATASET}\Z", max_length=_NAME_MAX)]
MaybeDatasetName = Annotated[
    str, msgspec.Meta(pattern=rf"\A(?:{_SAFE_DATASET})?\Z", max_length=_NAME_MAX)
]
SnapshotName = Annotated[str, msgspec.Meta(pattern=rf"\A{_SAFE_NAME}\Z", max_length=_NAME_MAX)]
FullName = Annotated[str, msgspec.Meta(pattern=rf"\A{_SAFE_DATASET}(?:@{_SAFE_NAME})?\Z")]

_TYPE = rf"(?:{'|'.join(SANOID_TYPES)})"
_OF_SANOID = re.compile(rf"(?P<run>.+?)(?P<dst>dst)?_(?P<type>{_TYPE})")


def run_of(name: str) -> str:
    """The run in a snapshot name: `autosnap_2026-11-20_03:00:00` of `..._hourly`.

    A name of another shape is its own run.
    """
    match = _OF_SANOID.fullmatch(name)
    return match["run"] if match else name


@lru_cache(1024)
def type_of(name: str) -> str:
    """`hourly` of `autosnap_..._hourly`; the whole name if it has no type."""
    match = _OF_SANOID.fullmatch(name)
    return match["type"] if match else name


def type_or_manual(name: str) -> str:
    """`hourly` of `autosnap_..._hourly`; `manual` if the name has no type."""
    match = _OF_SANOID.fullmatch(name)
    return match["type"] if match else MANUAL


def is_dataset(name: str) -> bool:
    """Can a dataset have that name?"""
    return len(name) <= _NAME_MAX and bool(_DATASET.fullmatch(name))


def is_name(name: str) -> bool:
    """Can a snapshot have that name?"""
    return len(name) <= _NAME_MAX and bool(_SNAPNAME.fullmatch(name))


def is_safe(full_name: str) -> bool:
    """May that `dataset@name`, out of a file of ours, be used in command lines and messages?"""
    return bool(_SAFE_SNAPSHOT.fullmatch(full_name)) and full_name.isprintable()


def too_long(names: Iterable[str]) -> str:
    """Why these names of datasets and snapshots (DATASET@NAME) cannot all be given; "" if they can.

    ZFS_MAX_DATASET_NAME_LEN is 256, with the NUL at the end.
    """
    longest = max(names, key=len, default="")
    if len(longest) <= _NAME_MAX:
        return ""
    return f"{longest} would be {len(longest)} characters long, and ZFS allows {_NAME_MAX}"


def spellings(name: str) -> tuple[str, ...]:
    """The names under which sanoid may really have taken `name`: itself, and with `dst`."""
    match = _OF_SANOID.fullmatch(name)
    if not match or match["dst"]:
        return (name,)
    return (name, f"{match['run']}dst_{match['type']}")


def is_within(dataset: str, top: str) -> bool:
    """Is it `top`, or below that?"""
    return dataset == top or dataset.startswith(f"{top}/")


def check_dataset(variable: str, value: str) -> None:
    """Raises HookEnvironmentInvalid if no dataset can have that name."""
    _check(variable, value, _DATASET)


def check_name(variable: str, value: str) -> None:
    """Raises HookEnvironmentInvalid if no snapshot can have that name."""
    _check(variable, value, _SNAPNAME)


def _check(variable: str, value: str, pattern: re.Pattern[str]) -> None:
    if len(value) > _NAME_MAX or not pattern.fullmatch(value):
        raise HookEnvironmentInvalid(f"{variable} {value!r} is not a name that ZFS can know")
