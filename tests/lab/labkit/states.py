"""States: frozen labs, from which any number of instances may run at once.

A state is a directory with one qcow2 layer per disk, each on top of the layer of the
state it was made from, and the stream of a live migration: RAM and devices. Nothing
in it changes after it was published. An instance puts fresh layers on top and loads the
stream. (QEMU's own savevm would keep the state inside the instance's disks: one
instance per state, and a copy of everything for each.)
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labkit import command, hostlock, machine, settings, version
from labkit.image import Image


@dataclass(frozen=True)
class State:
    """A published state."""

    directory: Path

    @property
    def stream(self) -> Path:
        """RAM and devices."""
        return self.directory / "stream"

    def layer(self, disk: str) -> Path:
        """What an instance's disk lies on."""
        return self.directory / f"{disk}.qcow2"

    @property
    def name(self) -> str:
        """Its directory's name, unique in its image or instance."""
        return self.directory.name

    @property
    def image_key(self) -> str:
        """The image at the bottom of it."""
        return str(self._note()["image"])

    def lineage(self) -> list[str]:
        """The names of this state and all below it, which must not be removed while it is used."""
        return list(self._note()["lineage"])

    def _note(self) -> dict[str, Any]:
        note: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return note


def blank_disks(directory: Path, image: Image) -> None:
    """Fresh disks for a lab that boots for the first time."""
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    command.run([*create, "-b", image.root_disk, "-F", "raw", directory / "root.qcow2"])
    for disk in settings.DISKS[1:]:
        command.run([*create, directory / f"{disk}.qcow2", f"{settings.POOL_DISK_MIB}M"])


def disks_on(state: State, directory: Path) -> None:
    """Fresh layers on top of a state."""
    for disk in settings.DISKS:
        command.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", state.layer(disk),
                     "-F", "qcow2", directory / f"{disk}.qcow2"])


def unfinished(target: Path) -> Path:
    """An empty directory to make a state in."""
    path = target.with_name(f".unfinished-{target.name}-{os.getpid()}")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def publish(draft: Path, target: Path, disks_from: Path, image_key: str, parent: State | None,
            ) -> State:
    """Make the stopped instance's disks and the stream in `draft` a state."""
    lineage = [target.name, *(parent.lineage() if parent else [])]
    (draft / "state.json").write_text(json.dumps({"image": image_key, "lineage": lineage}))
    for disk in settings.DISKS:
        (disks_from / f"{disk}.qcow2").rename(draft / f"{disk}.qcow2")
    for path in draft.iterdir():
        path.chmod(0o444)
    draft.rename(target)
    return State(target)


class OwnStates:
    """States saved by hand in one instance: NAME~1, NAME~2 ..., of which the last one counts.

    An older one stays as long as another lies on it.
    """

    def __init__(self, directory: Path) -> None:
        """Look after the states in a directory."""
        self._directory = directory

    def _all(self) -> list[State]:
        paths = self._directory.glob("[!.]*~*")
        return sorted(map(State, paths), key=lambda state: int(state.name.rpartition("~")[2]))

    def names(self) -> list[str]:
        """What can be found."""
        return sorted({state.name.rpartition("~")[0] for state in self._all()})

    def find(self, name: str) -> State | None:
        """The last state saved under a name."""
        found = [state for state in self._all() if state.name.rpartition("~")[0] == name]
        return found[-1] if found else None

    def next_path(self, name: str) -> Path:
        """Where the next state of a name goes."""
        last = self.find(name)
        number = int(last.name.rpartition("~")[2]) + 1 if last else 1
        return self._directory / f"{name}~{number}"

    def tidy(self, running: State | None) -> None:
        """Remove what no name leads to any more."""
        states = self._all()
        needed = {below for name in self.names() for below in _lineage(self.find(name))}
        needed.update(_lineage(running))
        for state in states:
            if state.name not in needed:
                shutil.rmtree(state.directory)

    def forget(self, name: str) -> None:
        """Remove all states of a name; for an instance that is down."""
        for state in self._all():
            if state.name.rpartition("~")[0] == name:
                shutil.rmtree(state.directory)


def stage(image: Image, name: str) -> Path:
    """Where the stage `name` of the code of now lies: a state that all instances share."""
    key = _code(image)
    return _stages(image, key) / f"{name}@{key}"


def stage_of(image: Image, full_name: str) -> Path:
    """Where the stage of that full name lies, which is unique in the image."""
    return _stages(image, full_name.partition("@")[2]) / full_name


def forget_stages(image: Image, *, but_of_now: bool) -> None:
    """Remove the stages of all other code, or of all, that nobody uses now."""
    kept = _stages(image, _code(image))
    for path in image.directory.glob("stages-*"):
        if path != kept or not but_of_now:
            hostlock.remove_unused(path)


def stages_in_use(image: Image) -> int:
    """Mark the stages of the code of now as in use, as long as the descriptor is open."""
    return hostlock.in_use(_stages(image, _code(image)).name)


def _stages(image: Image, key: str) -> Path:
    return image.directory / f"stages-{key}"


@cache
def _code(image: Image) -> str:
    return settings.digest([version.all_of_it(), machine.fingerprint(image)])


def _lineage(state: State | None) -> list[str]:
    return state.lineage() if state else []


def remove_older(state: State) -> None:
    """Remove states of the same name that older code made, unless in use."""
    name = state.directory.name.rpartition("-")[0]
    for old in state.directory.parent.glob(f"{name}-*"):
        if old.name.rpartition("-")[0] == name and old != state.directory:
            hostlock.remove_unused(old)
