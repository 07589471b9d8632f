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
from pathlib import Path

from labkit import command, hostlock, settings
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

    def lineage(self) -> list[str]:
        """The names of this state and all below it, which must not be removed while it is used."""
        lineage: list[str] = json.loads((self.directory / "lineage").read_text())
        return lineage


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


def publish(draft: Path, target: Path, disks_from: Path, parent: State | None) -> State:
    """Make the stopped instance's disks and the stream in `draft` a state."""
    lineage = [target.name, *(parent.lineage() if parent else [])]
    (draft / "lineage").write_text(json.dumps(lineage))
    for disk in settings.DISKS:
        (disks_from / f"{disk}.qcow2").rename(draft / f"{disk}.qcow2")
    for path in draft.iterdir():
        path.chmod(0o444)
    if target.exists():  # saved once more under the same name
        shutil.rmtree(target)
    draft.rename(target)
    return State(target)


def remove_older(state: State) -> None:
    """Remove states of the same name that older code made, unless in use."""
    name = state.directory.name.rpartition("-")[0]
    for old in state.directory.parent.glob(f"{name}-*"):
        if old.name.rpartition("-")[0] == name and old != state.directory:
            hostlock.remove_unused(old)
