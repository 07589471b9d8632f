"""What we were about to do for each guest when we died: one file per guest, removed when done.

A hint for cleaning up and publishing; where a disk really is, only libvirt's XML says.
An entry that cannot be read, or is of another schema, is set aside: the XML is enough to bring
its guest back, and only the point of that moment is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zvmsnap import domainxml, log
from zvmsnap.errors import LockTimeout
from zvmsnap.files import private_dir, remove_durably, write_atomic
from zvmsnap.levels import Level
from zvmsnap.locks import lock
from zvmsnap.placement import Place
from zvmsnap.steps import Step
from zvmsnap.steps import run as run_steps

SCHEMA = 2
_DAMAGED = ".damaged"
# Both become parts of paths: nothing that a damaged file says may lead out of our directories.
_GUEST = r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = _GUEST + r"\Z"
_CAPTURE = _GUEST + r"\.[0-9a-f]{8}\Z"
# Both become words of command lines: nothing in them may be taken for something else.
_Dataset = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][^\x00-\x1f\x7f@]*\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f@/]+\Z")]


class Process(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    started: int  # clock ticks after boot, field 22 of /proc/PID/stat
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now; `started` is 0 if there is none."""
        return cls(pid, _started(pid), Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    @classmethod
    def none(cls) -> Process:
        """No process: never alive."""
        return cls(0, 0, "")

    def is_alive(self) -> bool:
        """Does this very process still run?"""
        return self.started != 0 and Process.of(self.pid) == self


class Disk(msgspec.Struct, frozen=True):
    """A covered disk: what it is, where it lies, and the overlay for its writes ("" if none)."""

    target: str
    type: str
    format: str
    base: str
    dataset: _Dataset
    path: str
    overlay: str = ""

    @classmethod
    def of(cls, disk: domainxml.Disk, place: Place, overlay: str = "") -> Disk:
        """A disk of a definition, that lies there."""
        return cls(
            disk.target, disk.type, disk.format, disk.source, place.dataset, place.path, overlay
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's part in a moment that is not finished.

    `names` are the announced snapshot names; `former_guids` are snapshots that had one of these
    names before, and so are not of this moment. `capture` is the directory in staging. Without
    names it is no moment, but the recovery of a guest of which no journal knew.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: Annotated[str, msgspec.Meta(pattern=_UUID)]
    moment: str
    targets: tuple[_Dataset, ...]
    names: tuple[_Name, ...]
    former_guids: tuple[int, ...]
    owner: Process
    capture: Annotated[str, msgspec.Meta(pattern=_CAPTURE)]
    level: Level
    least: Level | None = None  # a point of less than that is not wanted
    reason: str | None
    disks: tuple[Disk, ...]
    taken: str
    step: str = ""
    memory_format: str = ""
    pause_s: float = 0.0
    dump_s: float = 0.0
    last_ram_s: float = 0.0
    merged: tuple[str, ...] = ()  # overlays whose data was in the base when we began to leave them
    given_up: bool = False  # its overlays were merged before the end, maybe during the snapshot
    paused: bool = False  # by us: to end its dump, or until its snapshot is taken
    frozen: bool = False  # its file systems, by us
    still_since_s: float = 0.0  # `still_clock_s` when it was about to be frozen, or was paused
    thaw_script: bool = False  # pre-freeze was begun, so post-thaw must run
    allowed_pause_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = (
        None  # what QEMU allowed itself before we changed it
    )
    overlay_s: float = 0.0
    commit_s: float = 0.0
    frozen_at_s: float = 0.0  # time.time() at which the disks had switched to their overlays
    moved: dict[str, str] = {}  # where a restore has moved datasets since their snapshots
    # Where nobody says how snapshots are called: the txg of each dataset's newest one before.
    since_txg: dict[str, int] | None = None
    # Guids of the snapshots that there were when it was about to be let go: later ones saw it run.
    seen: tuple[int, ...] | None = None
    tpm: str | None = None  # why the TPM's state is not coherent with the disks

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that hold the guest's disks of this moment."""
        return tuple(sorted({disk.dataset for disk in self.disks}))

    @property
    def is_enough(self) -> bool:
        """Is a point of its level wanted?"""
        return self.least is None or self.level.reaches(self.least)

    @property
    def may_be_dumped(self) -> bool:
        """May a dump of ours go on, though its caller was killed?"""
        return self.may_be_on_overlay or self.level.has_memory

    @property
    def may_stand_still(self) -> bool:
        """May it, or its file systems, stand still because of us, or come to do so?"""
        is_let_go = self.frozen_at_s and not self.paused
        return self.frozen or (self.level.holds_still and not is_let_go)

    @property
    def is_held(self) -> bool:
        """Did we make something stand still, or ask an administrator's program to?"""
        return self.frozen or self.thaw_script or (self.paused and self.level is Level.PAUSED)

    @property
    def may_be_on_overlay(self) -> bool:
        """May the guest be on overlays, or come to be on them by a dump that goes on?"""
        return not self.names or any(disk.overlay for disk in self.disks)


class Journal:
    """The directory of entries."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, entry: Entry) -> None:
        """Write `entry` down, durably, in place of the guest's former one."""
        private_dir(self._directory)
        write_atomic(self._path(entry.uuid), msgspec.json.format(msgspec.json.encode(entry)))

    def read(self, uuid: str) -> Entry | None:
        """The open entry of a guest. A damaged one is set aside and counts as none."""
        path = self._path(uuid)
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=Entry)
            if entry.uuid != uuid or not entry.capture.startswith(f"{uuid}."):
                raise msgspec.ValidationError("it is of another guest")
            if bool(entry.names) != bool(entry.moment):
                raise msgspec.ValidationError("a moment has snapshot names, a recovery has none")
            return entry
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            aside = path.with_suffix(_DAMAGED)
            log.plain().warning("%s cannot be read; set aside as %s", path, aside.name)
            os.replace(path, aside)
            return None

    def lost(self, uuid: str) -> bool:
        """Was an entry of that guest set aside, and has nobody seen to the guest since?"""
        return self._path(uuid).with_suffix(_DAMAGED).exists()

    def forget_lost(self, uuid: str) -> None:
        """The guest was seen to; what was set aside stays, under another name."""
        path = self._path(uuid).with_suffix(_DAMAGED)
        with suppress(FileNotFoundError):
            os.replace(path, path.with_suffix(f"{_DAMAGED}.seen"))

    def entries(self) -> list[Entry]:
        """All open entries."""
        if not self._directory.is_dir():
            return []
        found = (self.read(path.stem) for path in sorted(self._directory.glob("*.json")))
        return [entry for entry in found if entry]

    @contextmanager
    def if_free(self, locks_dir: Path, seen: Entry, intent: str) -> Iterator[Entry | None]:
        """Hold the lock of its guest, if nobody else does; yields the entry as it is by now.

        None if somebody works on it, or has closed it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(locks_dir, seen.uuid, intent, timeout_s=0))
            except LockTimeout:
                yield None
                return
            entry = self.read(seen.uuid)
            yield entry if entry and entry.capture == seen.capture else None

    def age_s(self, entry: Entry) -> float:
        """Seconds since somebody last worked on this entry; 0 if it is closed."""
        try:
            # Not less than 0, though clocks be set back.
            return max(0.0, time.time() - self._path(entry.uuid).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def tried(self, entry: Entry) -> None:
        """Somebody begins to work on this entry, and may fail before there is a step to write."""
        with suppress(FileNotFoundError):
            os.utime(self._path(entry.uuid), follow_symlinks=False)

    def close(self, entry: Entry) -> None:
        """The guest's part is done."""
        remove_durably(self._path(entry.uuid))

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"


class Open:
    """An entry that is being worked on: each step is written down before it is done."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
        self._journal = journal
        self.entry = entry

    def note(self, **changes: Any) -> None:
        """Write changes of the entry down."""
        self.entry = msgspec.structs.replace(self.entry, **changes)
        self._journal.write(self.entry)

    def step(self, name: str, do: Callable[[], None]) -> None:
        """One step. Raises StepFailed; nothing is undone."""
        run_steps([Step(name, do)], lambda step: self.note(step=step))

    def close(self) -> None:
        """The guest's part is done."""
        self._journal.close(self.entry)


def still_clock_s() -> float:
    """Seconds that pass for all processes alike, whatever clocks are set to; since the boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The command's name may hold any byte but NUL; fields count from behind the last parenthesis.
    return int(stat.rpartition(b")")[2].split()[19])
