"""All that `zvmsnap init` would do: files that change, a dataset that is made, a unit enabled.

Each file that changes is copied first, and replaced by one rename.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from zvmsnap.check.facts import Facts, SeenGuest
from zvmsnap.check.services import RECOVER
from zvmsnap.common.errors import GuestNotFound, SetupRefused
from zvmsnap.common.safe_files import rename_to_free, sync_dir, write_atomic
from zvmsnap.config import settings
from zvmsnap.setup import proposal, vault
from zvmsnap.zfs import zfs

_MODE = 0o644


@dataclass(frozen=True)
class Change:
    """A file, and what it reads before and after."""

    path: Path
    before: str
    after: str

    def diff(self) -> Iterator[str]:
        """As diff(1) shows it."""
        name = str(self.path)
        yield from difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), name, name, lineterm=""
        )

    def write(self) -> str:
        """Write it; says so, and where the copy of the old one is. Raises OSError."""
        # An administrator's link leads to where the file is kept, as in a repository.
        path = Path(os.path.realpath(self.path))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, self.after, _MODE)
            return f"wrote {path}"
        if path.read_bytes().decode(errors="surrogateescape") != self.before:
            raise SetupRefused(f"{path} was changed meanwhile: run zvmsnap init again")
        copy = path.with_name(f"{path.name}.before-zvmsnap-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        draft = path.with_name(f".{path.name}.zvmsnap")
        shutil.copy2(path, draft)
        copy = rename_to_free(draft, copy)
        sync_dir(path.parent)
        _put(path, self.after, stat.S_IMODE(path.stat().st_mode))
        return f"wrote {path}; the old one is {copy}"


def _put(path: Path, content: str, mode: int) -> None:
    write_atomic(path, content.encode(errors="surrogateescape"))
    path.chmod(mode)


@dataclass
class Plan:
    """What is to be done, and what is left to a person."""

    changes: list[Change] = field(default_factory=list)
    vault: list[str] = field(default_factory=list)
    enables: bool = False
    notes: list[str] = field(default_factory=list)
    guests: list[str] = field(default_factory=list)
    sanoid_conf: str = ""

    @property
    def is_empty(self) -> bool:
        """Is nothing to be done?"""
        return not (self.changes or self.vault or self.enables)

    def lines(self) -> Iterator[str]:
        """For people: all that would be done."""
        for change in self.changes:
            yield from change.diff()
            yield ""
        if self.vault:
            yield f"zfs create {' '.join(self.vault)}"
        if self.enables:
            yield f"systemctl enable {RECOVER}"
        for note in self.notes:
            yield f"left to you: {note}"

    def execute(self, facts: Facts) -> Iterator[str]:
        """Do it; says each thing that was done. May be repeated. Raises ZfsFailed and OSError."""
        # First the place for points: sanoid may begin a round as soon as its file is there.
        if self.vault:
            zfs.command("create", *self.vault)
            yield f"made {self.vault[-1]}"
        for change in self.changes:
            yield change.write()
        if self.enables and facts.ask("systemctl", "enable", RECOVER) is not None:
            yield f"enabled {RECOVER}"


def plan(facts: Facts, wanted: Sequence[str] = ()) -> Plan:
    """What is missing for all guests on ZFS, or for those named.

    Raises GuestNotFound and SetupRefused.
    """
    if facts.datasets is None or facts.guests is None:
        why = "; ".join(each.text for each in facts.findings)
        raise SetupRefused(f"ZFS and libvirt must answer first: {why}")
    guests = _chosen(facts, wanted)
    conf = facts.sanoid.conf if facts.sanoid else facts.path("/etc/sanoid/sanoid.conf")
    before = _read(conf)
    if before.strip() and facts.sanoid and not facts.sanoid.ini:
        raise SetupRefused(f"{conf} cannot be read as sanoid reads it: correct it first")
    proposed = proposal.propose(facts, before, guests)
    made = Plan(guests=[each.name for each in guests], notes=proposed.notes)
    made.sanoid_conf = proposed.sanoid_conf
    made.notes += [
        f"{each.subject}: {each.text}" for each in facts.findings if each.check != "sanoid.conf"
    ]
    if not facts.sanoid:
        made.notes.append("sanoid is not installed: apt install sanoid")
    if not guests:
        made.notes.append("no guest has a disk on ZFS: nothing can be snapshotted")
        return made
    made.changes += _change(conf, before, proposed.sanoid_conf)
    sources = settings.files()
    own = sources[0] if sources else settings.DEFAULT_PATH
    old = _read(own)
    made.changes += _change(own, old, vault.config(facts, old, sources))
    made.vault = vault.dataset(facts, proposed.tops)
    made.enables = _is_disabled(facts)
    return made


def _change(path: Path, before: str, after: str) -> list[Change]:
    return [Change(path, before, after)] if after != before else []


def _chosen(facts: Facts, wanted: Sequence[str]) -> list[SeenGuest]:
    if not wanted:
        return facts.on_zfs
    known = {word: each for each in facts.on_zfs for word in (each.name, each.guest.uuid)}
    for word in wanted:
        if word not in known:
            names = ", ".join(sorted(each.name for each in facts.on_zfs)) or "none"
            raise GuestNotFound(f"{word}: is no guest with a disk on ZFS; these are: {names}")
    return list({known[word].name: known[word] for word in wanted}.values())


def _is_disabled(facts: Facts) -> bool:
    said = facts.ask("systemctl", "show", "--property=LoadState,UnitFileState", RECOVER) or ""
    return "LoadState=loaded" in said and "UnitFileState=disabled" in said


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""
