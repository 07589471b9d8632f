"""What sanoid says: its environment as a HookCall, and what its sanoid.conf adds.

Facts from sanoid's source, 2.0.0 to 2.3.0 and master:

* SANOID_TARGETS/SANOID_SNAPNAMES exist since 2.1.0 in pre and post; the singular ones always.
* SANOID_SNAPNAME is bare, except in post since 2.1.0, where it is `dataset@name` (sanoid #798).
* If a name exists already (clocks set back), `dst` is put before the type *after* the environment
  was made (since 2.0.3), so the names that were really taken may differ from the announced ones.
* No variable tells whether `zfs snapshot -r` is used: only the section in sanoid.conf does.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zvmsnap.errors import ConfigInvalid, HookEnvironmentInvalid
from zvmsnap.levels import MANUAL, SANOID_TYPES

DEFAULT_CONFIGDIR = Path("/etc/sanoid")

# zfs(8), "naming": letters, digits and _ - : . and blanks; components are divided by slashes.
_COMPONENT = r"[A-Za-z0-9_.:\- ]+"
_DATASET = re.compile(rf"(?!.*(?:^|/)\.{{1,2}}(?:/|$))[A-Za-z]{_COMPONENT[:-1]}*(?:/{_COMPONENT})*")
_SNAPNAME = re.compile(_COMPONENT)
_NAME_MAX = 255

_TYPE = rf"(?:{'|'.join(SANOID_TYPES)})"
_MOMENT = re.compile(rf"(?P<moment>.+?)(?P<dst>dst)?_(?P<type>{_TYPE})")


class Role(StrEnum):
    """Which of sanoid's hooks is running; told by our argument, as SANOID_SCRIPT may be unset."""

    PRE = "pre"
    POST = "post"
    PRUNE = "prune"


@dataclass(frozen=True)
class HookCall:
    """One call of a hook: which datasets, which bare snapshot names, did pre fail.

    `unnamed`: the caller does not say what its snapshots are called; `names` are made up.
    """

    role: Role
    datasets: tuple[str, ...]
    names: tuple[str, ...]
    pre_failed: bool = False
    unnamed: bool = False

    @property
    def moment(self) -> str:
        """The name that all snapshot names of this call share."""
        return moment_of(self.names[0])

    @property
    def types(self) -> tuple[str, ...]:
        """Hourly, daily ...: the types of its snapshots; `manual` where a name has none."""
        return tuple(dict.fromkeys(_type_or_manual(name) for name in self.names))


def moment_of(name: str) -> str:
    """The moment in a snapshot name: `autosnap_2026-11-20_03:00:00` of `..._hourly`.

    Names of other shapes are their own moment.
    """
    match = _MOMENT.fullmatch(name)
    return match["moment"] if match else name


def type_of(name: str) -> str:
    """`hourly` of `autosnap_..._hourly`; the whole name where there is no type in it."""
    match = _MOMENT.fullmatch(name)
    return match["type"] if match else name


def _type_or_manual(name: str) -> str:
    match = _MOMENT.fullmatch(name)
    return match["type"] if match else MANUAL


def is_name(name: str) -> bool:
    """Can a snapshot have that name?"""
    return len(name) <= _NAME_MAX and bool(_SNAPNAME.fullmatch(name))


def spellings(name: str) -> tuple[str, ...]:
    """The names under which sanoid may really have taken `name`: itself, and with `dst`."""
    match = _MOMENT.fullmatch(name)
    if not match or match["dst"]:
        return (name,)
    return (name, f"{match['moment']}dst_{match['type']}")


def hook_call(role: Role, environment: Mapping[str, str]) -> HookCall:
    """Read sanoid's environment.

    Raises HookEnvironmentInvalid if a variable is missing, or is no name that ZFS could know.
    """
    datasets = _words(environment, "SANOID_TARGETS", "SANOID_TARGET")
    names = [
        _bare(name, datasets) for name in _words(environment, "SANOID_SNAPNAMES", "SANOID_SNAPNAME")
    ]
    # post's full name is the only one that tells of a `dst` put in after the fact.
    if role is Role.POST and "SANOID_SNAPNAME" in environment:
        names.append(_bare(environment["SANOID_SNAPNAME"], datasets))
    for dataset in datasets:
        check_dataset("SANOID_TARGET", dataset)
    for name in names:
        check_name("SANOID_SNAPNAME", name)
    return HookCall(
        role=role,
        datasets=tuple(dict.fromkeys(datasets)),
        names=tuple(dict.fromkeys(names)),
        pre_failed=environment.get("SANOID_PRE_FAILURE", "0") not in ("", "0"),
    )


def _words(environment: Mapping[str, str], plural: str, singular: str) -> list[str]:
    text = environment.get(plural) or environment.get(singular) or ""
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        raise HookEnvironmentInvalid(
            f"{singular} is not set: this hook is called by sanoid; "
            f"name it in sanoid.conf, or set {singular} to call it by hand"
        )
    return words


def _bare(name: str, datasets: list[str]) -> str:
    dataset, at, bare = name.rpartition("@")
    if at and dataset not in datasets:
        raise HookEnvironmentInvalid(
            f"SANOID_SNAPNAME {name!r} is no snapshot of SANOID_TARGET {','.join(datasets)!r}"
        )
    return bare


def check_dataset(variable: str, value: str) -> None:
    """Raises HookEnvironmentInvalid if no dataset can have that name."""
    _check(variable, value, _DATASET)


def check_name(variable: str, value: str) -> None:
    """Raises HookEnvironmentInvalid if no snapshot can have that name."""
    _check(variable, value, _SNAPNAME)


def _check(variable: str, value: str, pattern: re.Pattern[str]) -> None:
    if len(value) > _NAME_MAX or not pattern.fullmatch(value):
        raise HookEnvironmentInvalid(f"{variable} {value!r} is not a name that ZFS can know")


def is_sanoid(command_line: Sequence[str]) -> bool:
    """Is that the command line of a sanoid (a Perl script, so its name comes second)?"""
    return any(os.path.basename(word) == "sanoid" for word in command_line[:3])


def takes_recursively(conf: Path, dataset: str) -> bool:
    """Does sanoid take `zfs snapshot -r` of `dataset`? True if its section says `recursive = zfs`.

    sanoid looks for /zfs/i in the key of the section that is named as the dataset, and ignores
    the key in templates. Raises ConfigInvalid if the file cannot be read.
    """
    parser = configparser.ConfigParser(
        strict=False,
        interpolation=None,
        delimiters=("=",),
        comment_prefixes=("#", ";"),
        default_section="",
        allow_no_value=True,
    )
    try:
        lines = conf.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        # Blanks before a key mean nothing to sanoid; here they would make it part of the last one.
        parser.read_string("\n".join(line.strip() for line in lines))
    except FileNotFoundError:
        return False
    except (OSError, configparser.Error) as error:
        reason = str(error).splitlines()[0]
        raise ConfigInvalid(f"{conf}: cannot be read as sanoid.conf: {reason}") from error
    value = parser.get(dataset, "recursive", fallback=None)
    return value is not None and "zfs" in value.lower()


def configdir_of(command_line: tuple[str, ...]) -> Path | None:
    """The --configdir in the command line of the sanoid that called us, if it has one."""
    for position, word in enumerate(command_line):
        option, equals, value = word.partition("=")
        # Getopt::Long takes one or two dashes and any unambiguous beginning.
        if re.fullmatch(r"--?conf(?:i(?:g(?:d(?:i(?:r)?)?)?)?)?", option):
            if equals:
                return Path(value)
            if position + 1 < len(command_line):
                return Path(command_line[position + 1])
    return None
