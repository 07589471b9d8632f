"""Reads sanoid.conf as sanoid itself resolves it: what counts for each dataset. Pure.

For people who are told what is wrong with it, before a round. What a round really does, the hooks
ask sanoid (hooks/rehearsal). As sanoid's init() and Config::IniFiles read it:

| what                    | until 2.1              | 2.2               | 2.3 and later      |
|-------------------------|------------------------|-------------------|--------------------|
| a key that stands twice | is neither yes nor zfs | the first counts  | the first counts   |
| blanks behind a value   | belong to it           | belong to it      | are cut off, where |
|                         |                        |                   | it is read in time |

A value that is neither yes nor no counts as yes for most keys (`autosnap = "no "`), and as no for
`recursive`. In 2.3 blanks are cut off when the section comes: too late for a template that stands
behind the section that uses it. Sections come in the sequence of the file: one that stands before
its parent's is overwritten by that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from zvmsnap.common.errors import SanoidConfInvalid

Version = tuple[int, ...]
Children = Callable[[str], Iterable[str]]

TEMPLATE = "template_"
_DEFAULT = "template_default"
_TRIMS = (2, 3)
_FIRST_OF_SEVERAL = (2, 2)
_TRUE = frozenset(("1", "true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"))
_FALSE = frozenset(("0", "false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"))
_TOGGLES = (
    "autosnap",
    "autoprune",
    "monitor_dont_warn",
    "monitor_dont_crit",
    "monitor",
    "recursive",
    "process_children_only",
    "skip_children",
    "no_inconsistent_snapshot",
    "force_post_snapshot_script",
)
_COMMENT = re.compile(r"\s*[#;]")
_SECTION = re.compile(r"\s*\[\s*(\S|\S.*\S)\s*\]\s*")
_KEY = re.compile(r"\s*([^=]*?[^=\s])\s*=\s*(.*)")
_NOT_INHERITED = re.compile("template|recursive|children_only")
_NOT_OWN = re.compile("template|recursive|skip_children")
_RECURSION = "zfs_recursion"  # a key of sanoid's own
_SEVERAL = "\0several"  # what Perl has for a key with several values

# sanoid.defaults.conf of sanoid 2.2, for hosts without one: the keys that are looked at here.
DEFAULTS: Mapping[str, str] = {
    "autosnap": "1",
    "autoprune": "yes",
    "script_timeout": "5",
    "frequently": "0",
    "hourly": "48",
    "daily": "90",
    "weekly": "0",
    "monthly": "6",
    "yearly": "0",
    **dict.fromkeys(
        (
            "path",
            "recursive",
            "use_template",
            "process_children_only",
            "skip_children",
            "pre_snapshot_script",
            "post_snapshot_script",
            "pruning_script",
            "no_inconsistent_snapshot",
            "force_post_snapshot_script",
        ),
        "",
    ),
}


@dataclass
class Ini:
    """Sections by name, in the sequence of the file; each key with all its values."""

    sections: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def titles(self) -> list[str]:
        """The sections that are no templates."""
        return [name for name in self.sections if not name.startswith(TEMPLATE)]


@dataclass(frozen=True)
class Policy:
    """What counts for one dataset; `section` is the one that says so, for many datasets maybe.

    `path`: the dataset that is snapshotted. `parent`: the section from which it was inherited, ""
    if from none. `is_below`: it is snapshotted with that (`zfs snapshot -r`), not by itself.
    """

    dataset: str
    section: str
    path: str
    keys: Mapping[str, str]
    parent: str = ""
    is_recursive: bool = False
    is_below: bool = False

    def is_on(self, key: str) -> bool:
        """Is a key on, by Perl's rules?"""
        return self.keys.get(key, "") not in ("", "0")

    @property
    def takes(self) -> bool:
        """Does sanoid take snapshots of the dataset itself?"""
        return self.is_on("autosnap") and not self.is_on("process_children_only")

    @property
    def counts(self) -> dict[str, int]:
        """How many snapshots of each type are kept."""
        types = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly")
        return {kind: _number(self.keys.get(kind, "")) for kind in types}


def parse(text: str) -> Ini:
    """Read the text of a file. Raises SanoidConfInvalid, with the number of the line."""
    ini = Ini()
    section: dict[str, list[str]] | None = None
    lines = iter(enumerate(re.split("\r\n|\n|\r", text), 1))
    for number, line in lines:
        if not line.strip() or _COMMENT.match(line):
            continue
        if title := _SECTION.fullmatch(line):
            section = ini.sections.setdefault(title[1], {})
        elif not (key := _KEY.fullmatch(line)):
            raise SanoidConfInvalid(f"line {number} is neither [section] nor key = value: {line!r}")
        elif section is None:
            raise SanoidConfInvalid(f"line {number}: a key before the first [section]: {line!r}")
        else:
            value = key[2]
            values = _here_document(value[2:], number, lines) if value[:2] == "<<" else [value]
            section.setdefault(key[1], []).extend(values)
    if not ini.sections:
        raise SanoidConfInvalid("it is empty, and sanoid does not start")
    return ini


def _here_document(mark: str, number: int, lines: Iterable[tuple[int, str]]) -> list[str]:
    values: list[str] = []
    for _, line in lines:
        if line == mark:
            return values
        values.append(line)
    raise SanoidConfInvalid(f"line {number}: the text that begins here has no end {mark!r}")


def defaults_of(text: str) -> dict[str, str]:
    """The default of each key, of the text of sanoid.defaults.conf. Raises SanoidConfInvalid."""
    found = parse(text).sections.get(_DEFAULT, {})
    return {key: values[0] for key, values in found.items()}


def unknown_keys(ini: Ini, known: Iterable[str]) -> list[tuple[str, str]]:
    """Keys that sanoid does not know, each with its section: it does not start then."""
    names = frozenset(known)
    return [(name, key) for name, keys in ini.sections.items() for key in keys if key not in names]


def missing_templates(ini: Ini) -> list[tuple[str, str]]:
    """Templates that are used and do not exist, each with its section: sanoid says nothing."""
    return [
        (title, name)
        for title in ini.titles
        for name in _templates(_text(ini.sections[title].get("use_template", [])))
        if name and f"{TEMPLATE}{name}" not in ini.sections
    ]


def resolve(
    ini: Ini, defaults: Mapping[str, str], children: Children, version: Version
) -> dict[str, Policy]:
    """What counts for each dataset; `children` are all datasets below one, as ZFS lists them."""
    return _Resolver(ini, defaults, children, version).policies()


class _Resolver:
    """init() of sanoid: one pass over the sections, in their sequence."""

    def __init__(
        self, ini: Ini, defaults: Mapping[str, str], children: Children, version: Version
    ) -> None:
        self._raw = {
            name: {key: _text(values) for key, values in keys.items()}
            for name, keys in ini.sections.items()
        }
        self._values = ini.sections
        self._defaults = defaults
        self._children = children
        self._trims = version >= _TRIMS
        self._takes_first = version >= _FIRST_OF_SEVERAL
        self._config: dict[str, dict[str, str]] = {}
        self._parents: dict[str, str] = {}

    def policies(self) -> dict[str, Policy]:
        for section in self._raw:
            self._mend(section)
            if not section.startswith(TEMPLATE):
                self._resolve(section)
        return {name: self._policy(name) for name in self._config}

    def _policy(self, name: str) -> Policy:
        keys = self._config[name]
        parent = self._parents.get(name, "")
        path = keys.get("path", name)
        policy = Policy(name, name if name in self._raw else parent, path, keys, parent)
        with_zfs = keys.get(_RECURSION) == "1"
        is_below = with_zfs and bool(parent) and not policy.is_on("autosnap")
        return replace(policy, is_recursive=with_zfs and policy.takes, is_below=is_below)

    def _mend(self, section: str) -> None:
        """What newer versions mend in a section when they come to it."""
        own = self._raw[section]
        if self._takes_first:
            own |= {key: self._first(section, key) for key in own}
        if self._trims:
            own |= {key: value.strip() for key, value in own.items()}

    def _first(self, section: str, key: str) -> str:
        value = self._raw[section][key]
        return self._values[section][key][0] if value == _SEVERAL else value

    def _resolve(self, section: str) -> None:
        own = self._raw[section]
        config = self._config.setdefault(section, {})
        if section not in self._parents:
            config |= {k: v for k, v in self._defaults.items() if not _NOT_INHERITED.search(k)}
            config |= self._template(_DEFAULT)
        for name in _templates(own.get("use_template", "")):
            config |= self._template(f"{TEMPLATE}{name}", takes_first=self._takes_first)
        config |= {key: value for key, value in own.items() if not _NOT_OWN.search(key)}
        for toggle in _TOGGLES:
            if (value := config.get(toggle)) is not None:
                config[toggle] = "1" if value in _TRUE else "0" if value in _FALSE else value
        config["path"] = own.get("path", section)
        if config.get(_RECURSION) == "1" and _number(config.get("autosnap", "")) == 1:
            config["autosnap"] = "0"
        self._recurse(section, own, config)

    def _template(self, name: str, *, takes_first: bool = False) -> dict[str, str]:
        keys = self._raw.get(name, {})
        values = {key: self._first(name, key) if takes_first else keys[key] for key in keys}
        return {k: v for k, v in values.items() if not re.search("template|recursive", k)}

    def _recurse(self, section: str, own: Mapping[str, str], config: dict[str, str]) -> None:
        recursive = own.get("recursive", "")
        with_zfs = recursive != _SEVERAL and "zfs" in recursive.lower()
        skips = own.get("skip_children", "") in _TRUE
        if with_zfs:
            config[_RECURSION] = "1"
        if not (with_zfs or recursive in _TRUE or skips):
            return
        for name in self._children(config["path"]):
            if skips and not with_zfs:
                # It is begun anew by its own section, if that comes later.
                self._config.pop(name, None)
                self._parents.pop(name, None)
                continue
            child = self._config.setdefault(name, {})
            if with_zfs:
                child["autosnap"] = "0"
            child |= {
                key: value
                for key, value in config.items()
                if not _NOT_INHERITED.search(key) and not (with_zfs and "autosnap" in key)
            }
            child["path"] = name
            self._parents[name] = section


def _text(values: list[str]) -> str:
    return values[0] if len(values) == 1 else _SEVERAL if values else ""


def _templates(value: str) -> list[str]:
    return [name.rstrip() for name in re.split(" *, *", value)] if value else []


def _number(text: str) -> int:
    """As Perl takes a text for a number."""
    match = re.match(r"\s*([+-]?\d+)", text)
    return int(match[1]) if match else 0
