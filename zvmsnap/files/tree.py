"""Finds and lists what a guest has at a path, in a view; never anything of this host.

A symlink of the guest means a place in the guest: the kernel of this host would take it for one of
its own. So a path is walked here, each directory opened in the one before, and a link is followed
from the view's top. Names are bytes of the guest: they are printed by terminal/options alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from zvmsnap.common.errors import FilesImpossible

_LINKS_MAX = 40  # as path_resolution(7)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WINDOWS_PATH = re.compile(r"[A-Za-z]:(?:[\\/]|\Z)|\\")
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}
_HERE = "."
_LAST_S = 253_370_764_800  # the year 9999: a guest may say any


@dataclass(frozen=True)
class Entry:
    """Something in a view: its name in a directory that is open, and its path from the top."""

    directory: int
    name: str
    path: str

    @property
    def status(self) -> os.stat_result:
        """Of itself, if it is a symlink. Raises OSError."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open it, if it is a directory, and no symlink. Raises OSError."""
        descriptor = os.open(self.name, _DIRECTORY, dir_fd=self.directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Item:
    """One line of a listing; times in seconds since the epoch. `target` is where a link leads."""

    name: str
    kind: str
    size_bytes: int
    mode: int
    modified_s: float
    target: str = ""


def kind_of(mode: int) -> str:
    """`file`, `directory`, `symlink`, `pipe`, `socket` or `device`."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


@contextmanager
def found(top: str, path: str, *, any_case: bool = False) -> Iterator[Entry]:
    """What the guest has at `path`, links followed, in the view at `top`.

    `any_case`: names do not differ by case. Raises FilesImpossible.
    """
    walk = _Walk(top, any_case=any_case)
    try:
        yield walk.to(path)
    finally:
        walk.close()


def listed(entry: Entry) -> list[Item]:
    """What is in a directory, by name; else the one thing itself. Raises FilesImpossible."""
    try:
        if not stat.S_ISDIR(entry.status.st_mode):
            return [_item(entry.name, entry.directory)]
        with entry.opened() as directory:
            return [_item(name, directory) for name in sorted(os.listdir(directory))]
    except OSError as error:
        raise FilesImpossible(f"{entry.path}: {error.strerror}") from error


def line(item: Item) -> str:
    """One line for people, as `ls -l` has it, without owners; a name is the guest's word."""
    when = datetime.fromtimestamp(item.modified_s, UTC) if _is_a_time(item.modified_s) else None
    shown = f"{when:%Y-%m-%d %H:%M}" if when else "-"
    leads = f" -> {item.target}" if item.kind == "symlink" else ""
    return f"{item.kind:9} {item.mode:04o} {item.size_bytes:15} {shown:16} {item.name}{leads}"


def _is_a_time(seconds: float) -> bool:
    return 0 <= seconds < _LAST_S


def _item(name: str, directory: int) -> Item:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        with suppress(OSError):
            target = os.readlink(name, dir_fd=directory)
    mode = stat.S_IMODE(status.st_mode)
    return Item(name, kind_of(status.st_mode), status.st_size, mode, status.st_mtime, target)


class _Walk:
    """A way from the top: the directories down to where it is are open."""

    def __init__(self, top: str, *, any_case: bool) -> None:
        self._top = top
        self._any_case = any_case
        self._open = [os.open(top, _DIRECTORY)]
        self._names: list[str] = []

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def to(self, path: str) -> Entry:
        left = _components(path)[::-1]
        links = 0
        last = _HERE
        while left:
            component = left.pop()
            last = _HERE
            if component == "..":
                self._up()
                continue
            try:
                name = self._spelled(component)
                mode = os.stat(name, dir_fd=self._open[-1], follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > _LINKS_MAX:
                        raise FilesImpossible(f"{path}: is behind too many symlinks")
                    left += self._linked(name)
                elif left:
                    self._down(name)
                else:
                    last = name
            except OSError as error:
                at = "/".join(("", *self._names, component))
                raise FilesImpossible(f"{path}: {at}: {error.strerror}") from error
        names = self._names if last == _HERE else [*self._names, last]
        return Entry(self._open[-1], last, f"/{'/'.join(names)}")

    def _linked(self, name: str) -> list[str]:
        """Where a symlink leads, the first component last."""
        target = os.readlink(name, dir_fd=self._open[-1])
        if target.startswith("/"):
            while self._names:
                self._up()
            # libguestfs shows the guest's absolute links as if they were below the mountpoint.
            if target == self._top or target.startswith(f"{self._top}/"):
                target = target.removeprefix(self._top)
        return _parts(target)[::-1]

    def _down(self, name: str) -> None:
        self._open.append(os.open(name, _DIRECTORY, dir_fd=self._open[-1]))
        self._names.append(name)

    def _up(self) -> None:
        if self._names:
            os.close(self._open.pop())
            self._names.pop()

    def _spelled(self, name: str) -> str:
        """As the directory has it. Raises OSError."""
        if not self._any_case:
            return name
        listed = os.listdir(self._open[-1])
        if name in listed:
            return name
        return next((each for each in listed if each.casefold() == name.casefold()), name)


def _components(path: str) -> list[str]:
    if _WINDOWS_PATH.match(path):
        path = path.replace("\\", "/")
    return _parts(path)


def _parts(path: str) -> list[str]:
    return [each for each in path.split("/") if each not in ("", _HERE)]
