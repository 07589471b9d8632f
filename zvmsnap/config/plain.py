"""Reads config.toml where it is written plainly: without the parser of TOML.

To load that parser, and what checks all values, takes longer than to start Python, and most hooks
have nothing to do (hooks/idle). Plain is a file all of whose lines are of these kinds:

| line                              | what it may be                                              |
|-----------------------------------|-------------------------------------------------------------|
| nothing, or a comment             | printable                                                   |
| `[modes]`, `[image]`, `[limits]`  | each once                                                   |
| `[[destination]]`                 |                                                             |
| `key = "text"`, `key = 'text'`    | printable, no backslash, no such quote                      |
| `key = ["text", "text"]`          | the same, without commas and brackets                       |
| `key = 60`, `key = 1.5`           | digits                                                      |
| `key = true`, `key = false`       |                                                             |

with keys that exist, each once, and values that they may have. What is plain config/settings reads,
too, to the same values. Anything else is left to it, as it says what is wrong.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what is imported for types alone takes its time, too
if TYPE_CHECKING:
    from collections.abc import Mapping

# As config/settings has them.
DEFAULT_PATH = "/etc/zvmsnap/config.toml"
DEFAULTS = {
    "uri": "qemu:///system",
    "staging": "/var/lib/zvmsnap/staging",
    "vault": "/var/lib/zvmsnap/vault",
    "journal": "/var/lib/zvmsnap/journal",
    "locks": "/run/zvmsnap",
}

# As common/snapshot_name has them.
TYPES = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly", "manual")
_TABLES = ("modes", "image", "limits")
_LEVELS = {"memory", "paused", "quiesced", "crash"}
_DESTINATION = "destination"
_PATH, _TEXT, _MODE, _WORD, _TARGET, _RATE, _TEXTS, _FLAG, _INTEGER, _NUMBER = range(10)
_KINDS = {
    ("", "uri"): _TEXT,
    ("", "staging"): _PATH,
    ("", "vault"): _PATH,
    ("", "journal"): _PATH,
    ("", "locks"): _PATH,
    ("", "sanoid_configdir"): _TEXT,
    ("", "mode"): _MODE,
    ("", "quiesce_overlay"): _FLAG,
    ("", "guest_scripts"): _PATH,
    **{("modes", each): _MODE for each in TYPES},
    ("image", "compression"): _WORD,
    ("image", "zstd_level"): _INTEGER,
    ("limits", "pause_first_ms"): _INTEGER,
    ("limits", "pause_max_ms"): _INTEGER,
    ("limits", "dump_min_mib_per_s"): _NUMBER,
    ("limits", "dump_max_ram_ratio"): _NUMBER,
    ("limits", "memory_max_pause_s"): _NUMBER,
    ("limits", "parallel_dumps"): _INTEGER,
    ("limits", "overlay_room_mib"): _INTEGER,
    ("limits", "staging_reserve_mib"): _INTEGER,
    ("limits", "busy_timeout_s"): _NUMBER,
    ("limits", "max_freeze_s"): _NUMBER,
    ("limits", "freeze_timeout_s"): _INTEGER,
    ("limits", "script_timeout_s"): _NUMBER,
    ("limits", "commit_timeout_s"): _NUMBER,
    ("limits", "lock_timeout_s"): _NUMBER,
    (_DESTINATION, "target"): _TARGET,
    (_DESTINATION, "guests"): _TEXTS,
    (_DESTINATION, "memory"): _WORD,
    (_DESTINATION, "raw"): _FLAG,
    (_DESTINATION, "bwlimit"): _RATE,
    (_DESTINATION, "create_bookmark"): _FLAG,
    (_DESTINATION, "use_hold"): _FLAG,
}
_WORDS = {"compression": ("auto", "none", "zstd"), "memory": ("latest", "all", "none")}
_IN_TARGETS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_MAY_BE_0 = ("limits", "parallel_dumps")
_PAUSES = ("limits", "pause_first_ms"), ("limits", "pause_max_ms")
_ZSTD_LEVEL = ("image", "zstd_level")
_ZSTD_LEVEL_MAX = 22
_DIGITS_MAX = 9
_TARGET_MAX = 200


class _NotPlain(Exception):
    """The file is for the parser."""


def settings(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The values of the keys of DEFAULTS; None if the file is not plain, or missing but named.

    Raises OSError if it cannot be read.
    """
    named = environment.get("ZVMSNAP_CONFIG")
    try:
        with open(named or DEFAULT_PATH, "rb") as file:
            return read(file.read())
    except FileNotFoundError:
        return None if named else DEFAULTS


def read(data: bytes) -> dict[str, str] | None:
    """The same, out of the content of a file."""
    try:
        values = _values(data.decode().split("\n"))
    except (UnicodeDecodeError, _NotPlain):
        return None
    return {key: values.get(("", key), default) for key, default in DEFAULTS.items()}


def _values(lines: list[str]) -> dict[tuple[str, str], str]:
    values: dict[tuple[str, str], str] = {}
    tables = [""]
    for line in lines:
        line = line.strip(" \t")
        is_comment = line.startswith("#")
        if not (line.replace("\t", " ") if is_comment else line).isprintable():
            raise _NotPlain
        if line.startswith("["):
            tables.append(_table(line, len(tables)))
        elif line and not is_comment:
            word, _, given = line.partition("=")
            key = (tables[-1], word.rstrip(" "))
            if key in values:
                raise _NotPlain
            values[key] = _value(key, given.lstrip(" "))
    pauses = [int(values[key]) for key in _PAUSES if key in values]
    if len(tables) != len(set(tables)) or len(pauses) == 1 or pauses != sorted(pauses):
        raise _NotPlain
    if any((each, "target") not in values for each in tables if each.startswith(_DESTINATION)):
        raise _NotPlain
    return values


def _table(line: str, number: int) -> str:
    """Its name; there may be several destinations, so these are numbered."""
    header = _before_comment(line)
    if header == f"[[{_DESTINATION}]]":
        return f"{_DESTINATION}{number}"
    if header[1:-1] not in _TABLES or header != f"[{header[1:-1]}]":
        raise _NotPlain
    return header[1:-1]


def _before_comment(text: str) -> str:
    return text.partition("#")[0].rstrip(" ")


def _value(key: tuple[str, str], given: str) -> str:
    kind = _KINDS.get((key[0].rstrip("0123456789"), key[1]))
    if kind is None:
        raise _NotPlain
    if kind == _TEXTS:
        inside = _before_comment(given)
        if not (inside.startswith("[") and inside.endswith("]")):
            raise _NotPlain
        return ",".join(
            _text(each.strip(" ")) for each in inside[1:-1].split(",") if inside != "[]"
        )
    if kind in (_FLAG, _INTEGER, _NUMBER):
        value = _before_comment(given)
        is_valid = value in ("true", "false") if kind == _FLAG else _is_number(key, kind, value)
    else:
        value = _text(given)
        is_valid = _is_text(key[1], kind, value)
    if not is_valid:
        raise _NotPlain
    return value


def _is_text(key: str, kind: int, text: str) -> bool:
    if kind == _PATH:
        return text.startswith("/")
    if kind == _MODE:
        return _is_mode(text)
    if kind == _WORD:
        return text in _WORDS[key]
    if kind == _TARGET:
        return _is_target(text)
    return kind == _TEXT or not text or _is_rate(text)


def _text(given: str) -> str:
    quote = given[:1]
    text, closing, behind = given[1:].partition(quote) if quote in ('"', "'") else ("", "", "")
    if not closing or "\\" in text or _before_comment(behind):
        raise _NotPlain
    return text


def _is_mode(text: str) -> bool:
    words = text.split(",")
    levels = words[:-1] if len(words) > 1 and words[-1] == "required" else words
    return len(set(levels)) == len(levels) and _LEVELS.issuperset(levels)


def _is_target(text: str) -> bool:
    """`[USER@HOST:]POOL/PATH`, of letters, digits, `_` and `-`; in the host also dots."""
    host, colon, root = text.rpartition(":")
    user, at, name = host.rpartition("@")
    words = root.split("/")
    begins = root[:1].isalpha()
    if colon:
        words.append(name.replace(".", ""))
        begins = begins and name[:1].isalnum()
    if at:
        words.append(user)
        begins = begins and user[:1].isalpha()
    return begins and len(text) <= _TARGET_MAX and all(map(_is_word, words))


def _is_word(text: str) -> bool:
    return text != "" and _IN_TARGETS.issuperset(text)


def _is_rate(text: str) -> bool:
    digits = text[:-1] if text[-1] in "kMG" else text
    return digits.isascii() and digits.isdecimal() and digits[0] != "0"


def _is_number(key: tuple[str, str], kind: int, text: str) -> bool:
    whole, point, fraction = text.partition(".")
    digits = whole + fraction if point else whole
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > _DIGITS_MAX or not whole:
        return False
    if point and (kind != _NUMBER or not fraction):
        return False
    if whole != str(int(whole)) or not (int(digits) or key == _MAY_BE_0):
        return False
    return key != _ZSTD_LEVEL or int(whole) <= _ZSTD_LEVEL_MAX
