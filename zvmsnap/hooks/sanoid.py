"""Reads sanoid's environment as a HookCall, and recognises sanoid's command line.

Facts from sanoid's source, 2.0.0 to 2.3.0 and master:

* SANOID_TARGETS/SANOID_SNAPNAMES exist since 2.1.0 in pre and post; the singular ones always.
* SANOID_SNAPNAME is bare, except in post since 2.1.0, where it is `dataset@name` (sanoid #798).
* If a name exists already (clocks set back), `dst` is put before the type *after* the environment
  was made (since 2.0.3), so the snapshots may have other names than the announced ones.
* No variable says whether `zfs snapshot -r` is used: see hooks/rehearsal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.common.snapshot_name import check_dataset, check_name
from zvmsnap.journal.request import HookCall, Role

_SCRIPT_BYTES_MAX = 1 << 20  # sanoid has less than 100 KiB
_BEGINNING_MIN = 2  # of --configdir and --cache-dir: `c` alone is ambiguous


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


def program(words: Sequence[str], cwd: Path) -> tuple[str, ...]:
    """What starts sanoid, of its command line: interpreter and script; () if that is no sanoid.

    A Perl script of another name is sanoid if it reads like it: some distributions wrap it.
    """
    for position, word in enumerate(words[:3]):
        if os.path.basename(word) == "sanoid":
            in_path = position == 0 and "/" not in word
            return (*words[:position], word if in_path else str(cwd / word))
    if words and re.fullmatch(r"perl[0-9.]*", os.path.basename(words[0])):
        options = len(list(takewhile(lambda word: word.startswith("-"), words[1:])))
        script = [str(cwd / word) for word in words[1 + options : 2 + options]]
        if script and reads_like_sanoid(Path(script[0])):
            return (*words[: 1 + options], *script)
    return ()


def reads_like_sanoid(script: Path) -> bool:
    """Is that file a program that calls hooks as sanoid does, and is configured like it?"""
    text = _text_of(script)
    return all(word in text for word in (b"Config::IniFiles", b"SANOID_TARGET"))


def is_before_2_1(script: Path) -> bool:
    """Is that a sanoid whose cache has a fixed place?"""
    return reads_like_sanoid(script) and b"cache-dir" not in _text_of(script)


def _text_of(script: Path) -> bytes:
    try:
        if not script.is_file():
            return b""
        with script.open("rb") as file:
            return file.read(_SCRIPT_BYTES_MAX)
    except OSError:
        return b""


def option(words: Sequence[str], name: str) -> str:
    """The value of an option in sanoid's command line, "" if it has none.

    Getopt::Long takes one or two dashes, any case, and any beginning that is unambiguous; and the
    last of several.
    """
    value = ""
    for position, word in enumerate(words):
        if word == "--":
            break
        given, equals, text = word.partition("=")
        beginning = given.lstrip("-").lower()
        if not re.match("--?[^-]", given) or len(beginning) < _BEGINNING_MIN:
            continue
        if name.startswith(beginning):
            value = text if equals else "".join(words[position + 1 : position + 2])
    return value
