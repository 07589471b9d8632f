"""Reads sanoid's environment as a HookCall, and sanoid.conf for what the environment lacks.

Facts from sanoid's source, 2.0.0 to 2.3.0 and master:

* SANOID_TARGETS/SANOID_SNAPNAMES exist since 2.1.0 in pre and post; the singular ones always.
* SANOID_SNAPNAME is bare, except in post since 2.1.0, where it is `dataset@name` (sanoid #798).
* If a name exists already (clocks set back), `dst` is put before the type *after* the environment
  was made (since 2.0.3), so the snapshots may have other names than the announced ones.
* No variable says whether `zfs snapshot -r` is used: only the section in sanoid.conf does.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from zvmsnap.common.errors import ConfigInvalid, HookEnvironmentInvalid
from zvmsnap.common.snapshot_name import check_dataset, check_name
from zvmsnap.journal.request import HookCall, Role

DEFAULT_CONFIGDIR = Path("/etc/sanoid")


def hook_call(role: Role, environment: Mapping[str, str]) -> HookCall:
    """Read sanoid's environment.

    Raises HookEnvironmentInvalid if a variable is missing, or is no name that ZFS could know.
    """
    datasets = _words(environment, "SANOID_TARGETS", "SANOID_TARGET")
    names = [
        _bare(name, datasets) for name in _words(environment, "SANOID_SNAPNAMES", "SANOID_SNAPNAME")
    ]
    # Of all names only post's full one has the `dst` that was put in afterwards.
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


def is_sanoid(command_line: Sequence[str]) -> bool:
    """Is this the command line of sanoid? It is a Perl script, so its name comes second."""
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
        # Blanks before a key mean nothing to sanoid, but would continue the last value here.
        parser.read_string("\n".join(line.strip() for line in lines))
    except FileNotFoundError:
        return False
    except (OSError, configparser.Error) as error:
        reason = str(error).splitlines()[0]
        raise ConfigInvalid(f"{conf}: cannot be read as sanoid.conf: {reason}") from error
    value = parser.get(dataset, "recursive", fallback=None)
    return value is not None and "zfs" in value.lower()


def configdir_of(command_line: tuple[str, ...]) -> Path | None:
    """The --configdir in sanoid's command line, if it has one."""
    for position, word in enumerate(command_line):
        option, equals, value = word.partition("=")
        # Getopt::Long takes one or two dashes and any unambiguous beginning.
        if re.fullmatch(r"--?conf(?:i(?:g(?:d(?:i(?:r)?)?)?)?)?", option):
            if equals:
                return Path(value)
            if position + 1 < len(command_line):
                return Path(command_line[position + 1])
    return None
