"""Reads where libvirt, the vault, the journal and the locks are, without the parser of TOML.

To load that parser takes longer than to start Python, and most hooks have nothing to do
(hooks/idle). So only this is read here, and only if each line of the file is one of these:

| line                  | what is read of it                                                   |
|-----------------------|----------------------------------------------------------------------|
| nothing, or a comment |                                                                      |
| `[name]`, `[[name]]`  | no key below it is looked at                                         |
| `key = value`         | above the first table: a key that exists, once; what is read is      |
|                       | `"text"` or `'text'`, without backslashes                            |

Anything else, as a text of several lines, is left to config/settings. So is what is wrong with all
other values: the next hook that has work says it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # what is imported for types alone takes its time, too
if TYPE_CHECKING:
    from collections.abc import Mapping

# As config/settings has them.
DEFAULT_PATH = "/etc/zvmsnap/config.toml"
CONF_D = "/etc/zvmsnap/conf.d"
_URI = "uri"
DEFAULTS = {
    _URI: "qemu:///system",
    "vault": "/var/lib/zvmsnap/vault",
    "journal": "/var/lib/zvmsnap/journal",
    "locks": "/run/zvmsnap",
}
_OTHERS = {
    "staging",
    "sanoid_configdir",
    "mode",
    "keep_memory",
    "quiesce_overlay",
    "backup_overlay",
    "guest_scripts",
    "notify",
}

# As common/snapshot_name has them.
TYPES = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly", "manual")

_IN_BARE_KEYS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class _NotPlain(Exception):
    """The file is for the parser."""


def settings(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The values of the keys of DEFAULTS; None if a file is not plain, or missing but named.

    Raises OSError if one cannot be read.
    """
    named = environment.get("ZVMSNAP_CONFIG")
    if named:
        return _merged([named], missing=None)
    try:
        names = sorted(name for name in os.listdir(CONF_D) if name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return _merged([DEFAULT_PATH, *(f"{CONF_D}/{name}" for name in names)], missing={})


def _merged(paths: list[str], missing: dict[str, str] | None) -> dict[str, str] | None:
    """What these files say, a later one before an earlier one; `missing` is for the first."""
    merged = DEFAULTS
    for path in paths:
        try:
            with open(path, "rb") as file:
                values = _read(file.read())
        except FileNotFoundError:
            values = missing if path == paths[0] else None
        if values is None:
            return None
        merged = merged | values
    return merged


def read(data: bytes) -> dict[str, str] | None:
    """The same, out of the content of a file."""
    values = _read(data)
    return None if values is None else DEFAULTS | values


def _read(data: bytes) -> dict[str, str] | None:
    try:
        return _values(data.decode().split("\n"))
    except (UnicodeDecodeError, _NotPlain):
        return None


def _values(lines: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    in_table = False
    for line in lines:
        line = line.strip(" \t\r")
        if line.startswith("["):
            in_table = True
            _check_table(_before_comment(line))
        elif line and not line.startswith("#"):
            word, equals, given = line.partition("=")
            key, value = word.rstrip(" \t"), given.lstrip(" \t")
            _check_ends_here(key, equals, value)
            if not in_table:
                if key in values or not (key in DEFAULTS or key in _OTHERS):
                    raise _NotPlain
                values[key] = _text(key, value) if key in DEFAULTS else ""
    return {key: value for key, value in values.items() if key in DEFAULTS}


def _check_table(header: str) -> None:
    name = header.strip("[]")
    if header not in (f"[{name}]", f"[[{name}]]") or not _is_bare(name):
        raise _NotPlain


def _check_ends_here(key: str, equals: str, value: str) -> None:
    """Nothing of the value may be in the next line, where it would look like a key or a table."""
    is_array = value[:1] in ("[", "{")
    if not equals or not _is_bare(key) or "'''" in value or '"""' in value:
        raise _NotPlain
    if is_array and _before_comment(value)[-1:] not in ("]", "}"):
        raise _NotPlain


def _is_bare(key: str) -> bool:
    return bool(key) and _IN_BARE_KEYS.issuperset(key)


def _text(key: str, given: str) -> str:
    quote = given[:1]
    text, closing, behind = given[1:].partition(quote) if quote in ('"', "'") else ("", "", "")
    is_valid = text.startswith("/") or key == _URI
    if not closing or "\\" in text or not is_valid or _before_comment(behind):
        raise _NotPlain
    return text


def _before_comment(text: str) -> str:
    return text.partition("#")[0].rstrip(" \t")
