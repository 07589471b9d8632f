"""What is missing on this host for its guests to get points, and which lines would add it. Pure.

| the guest's datasets are                | what is proposed                                       |
|-----------------------------------------|--------------------------------------------------------|
| snapshotted by none                     | a section of their common parent, `recursive = zfs`    |
| snapshotted together, by a section of   | the keys of the hooks that it does not have            |
| that dataset                            |                                                        |
| snapshotted by what they inherit from a | a section with these keys alone, behind all others; it |
| section that is `recursive = yes`       | inherits how many snapshots are kept                   |
| snapshotted at several instants         | nothing: an administrator has written it, and decides  |
| below no common parent                  | nothing: it is said what to do                         |

A line that says something else is not changed: that is said, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.check.facts import Facts, SeenGuest
from zvmsnap.check.hooks import HOOKS, hook_command
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config.sanoid_conf import TEMPLATE, Ini, Policy
from zvmsnap.setup import text

_NAME = "zvmsnap"
_RETENTION = {
    "autosnap": "yes",
    "autoprune": "yes",
    "frequently": "0",
    "hourly": "24",
    "daily": "14",
    "monthly": "3",
    "yearly": "0",
}
_HEADER = """\
# Proposed by `zvmsnap init`. Comments stand on lines of their own: sanoid passes what follows a
# value to the hook. `zvmsnap check` says what is wrong with this file.

"""
_ON = ("1", "yes", "on", "true")


@dataclass
class Proposal:
    """The text of sanoid.conf as it would be, and what a person must do."""

    sanoid_conf: str
    notes: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)


def propose(facts: Facts, before: str, guests: Sequence[SeenGuest]) -> Proposal:
    """What sanoid.conf, which now reads `before`, would be for these guests."""
    return _Proposer(facts, before).of(guests)


class _Proposer:
    def __init__(self, facts: Facts, before: str) -> None:
        self._facts = facts
        self._before = before
        self._ini = facts.sanoid.ini if facts.sanoid and facts.sanoid.ini else Ini()
        self._keys = hook_keys(facts.root)
        self._added: dict[str, Mapping[str, str]] = {}
        self._inserted: dict[str, dict[str, str]] = {}
        self._notes: list[str] = []
        self._tops: dict[str, None] = {}

    def of(self, guests: Sequence[SeenGuest]) -> Proposal:
        for guest in guests:
            self._consider(guest)
        changed = self._before
        for title, keys in self._inserted.items():
            changed = text.with_keys(changed, title, keys)
        sections = [text.section(title, keys) for title, keys in self._added.items()]
        uses_template = any(keys.get("use_template") == _NAME for keys in self._added.values())
        if uses_template and f"{TEMPLATE}{_NAME}" not in self._ini.sections:
            sections.append(self._template())
        if sections and not self._before.strip():
            sections[0] = _HEADER + sections[0]
        return Proposal(text.with_sections(changed, sections), self._notes, list(self._tops))

    def _consider(self, guest: SeenGuest) -> None:
        tops = {name: self._facts.snapshotted.get(name) for name in guest.datasets}
        found = {top.path: top for top in tops.values() if top}
        if not found:
            self._begin(guest)
        elif len(found) > 1 or None in tops.values():
            self._notes.append(
                f"{guest.name}: sanoid.conf snapshots its disks apart ({_listed(tops)}), and no "
                "RAM fits them: put them below one parent that has a section with recursive = zfs"
            )
        else:
            (top,) = found.values()
            self._tops[top.path] = None
            self._complete(top)

    def _begin(self, guest: SeenGuest) -> None:
        """Of a guest that nobody snapshots."""
        top = self._parent_of(guest)
        if not top:
            self._notes.append(
                f"{guest.name}: its disks ({', '.join(guest.datasets)}) have no parent of their "
                "own: put them below one dataset, zfs rename, and run zvmsnap init again"
            )
        elif top in self._ini.sections:
            self._notes.append(
                f"{guest.name}: sanoid.conf has a section [{top}] that takes no snapshots: set "
                "autosnap = yes there"
            )
        else:
            # A section that stands before that of its parent would be overwritten by it.
            for inner in [each for each in self._added if is_within(each, top)]:
                del self._added[inner]
            self._tops[top] = None
            self._added[top] = {"use_template": _NAME, "recursive": "zfs"}

    def _parent_of(self, guest: SeenGuest) -> str:
        """The dataset whose snapshot has all its disks; "" if there is none but a pool."""
        if any(is_within(name, top) for top in self._added for name in guest.datasets):
            return next(top for top in self._added if is_within(guest.datasets[0], top))
        top = guest.datasets[0]
        while not all(is_within(name, top) for name in guest.datasets):
            top = top.rpartition("/")[0]
            if not top:
                return ""
        # All of a pool is not one guest's.
        return top if "/" in top or top in guest.datasets else ""

    def _complete(self, top: Policy) -> None:
        """Of a dataset that is snapshotted already: the keys of the hooks."""
        wrong = {key: value for key, value in self._keys.items() if not _fits(top, key, value)}
        if not wrong:
            return
        own = self._ini.sections.get(top.path)
        if own is None and top.path not in self._added:
            self._added[top.path] = {"recursive": "zfs", **wrong}
            return
        if own is None:
            return
        for key, value in wrong.items():
            if key not in own:
                self._inserted.setdefault(top.path, {})[key] = value
            else:
                note = f"[{top.path}] in sanoid.conf has {key} = {own[key][0]}: say {key} = {value}"
                if note not in self._notes:
                    self._notes.append(note)

    def _template(self) -> str:
        comment = "How many snapshots are kept, and the hooks of zvmsnap: see sanoid.conf.example."
        return "\n" + text.section(f"{TEMPLATE}{_NAME}", {**_RETENTION, **self._keys}, comment)


def hook_keys(root: Path) -> dict[str, str]:
    """The keys of sanoid.conf by which it calls the hooks, as they must be."""
    return {
        **{key: hook_command(root, key) for key in HOOKS},
        "script_timeout": "0",
        "force_post_snapshot_script": "yes",
        "no_inconsistent_snapshot": "no",
    }


def _fits(top: Policy, key: str, value: str) -> bool:
    """Is that key as it must be, or an administrator's own?"""
    own = top.keys.get(key, "").strip()
    if key.endswith("_script") and key != "force_post_snapshot_script":
        return bool(own)  # a script of the administrator's may call ours
    if key == "script_timeout":
        return not own[:1].isdigit() or own.startswith("0")
    return top.is_on(key) == (value in _ON)


def _listed(tops: Mapping[str, Policy | None]) -> str:
    return ", ".join(f"{name}: {top.path if top else 'not at all'}" for name, top in tops.items())
