"""`zvmsnap export-memory`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from zvmsnap.cli.options import PointArgument, find_point, print_line
from zvmsnap.common.errors import ExportImpossible
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import load_settings
from zvmsnap.points.manifest import Memory


def export_memory(
    point: PointArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A new file, on a file system with room.")
    ],
) -> None:
    """Write the RAM image of a point into a new file, as libvirt writes it, for virsh restore.

    All of it is read and compared with its checksum. The file appears when it is complete, and only
    root can read it: it holds all that the guest had in memory. Its disks must be those of the same
    instant, as their snapshots have them: zvmsnap restore sees to that, virsh restore does not.

    \b
    Examples:
      zvmsnap export-memory web@latest /root/web.img
    """
    from zvmsnap.points import memory_image

    _check(file)
    chosen = find_point(load_settings(), point)
    memory = chosen.manifest.memory
    if memory is None:
        why = chosen.manifest.reason
        raise ExportImpossible(f"{chosen.name}: has no RAM image{f': {why}' if why else ''}")
    _check_room(file, memory)
    # libvirt's image of a paused guest says so; but it was running until the snapshot.
    ran = chosen.manifest.level is ConsistencyLevel.PAUSED
    memory_image.export(chosen.directory / memory.file, memory, file, ran=ran)
    print_line(f"{file}: the RAM image of {chosen.name}, {file.stat().st_size >> 20} MiB")


def _check(file: Path) -> None:
    if str(file) == "-":
        # libvirt opens an image twice, and only at its end it is known whether it is whole.
        raise typer.BadParameter("a RAM image is written into a file, not to a pipe")
    if file.is_symlink() or file.exists():
        raise typer.BadParameter(f"{file} exists already, and is not overwritten")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"{file.parent} is no directory")


def _check_room(file: Path, memory: Memory) -> None:
    free_bytes = shutil.disk_usage(file.parent).free
    if memory.image_bytes > free_bytes:
        raise ExportImpossible(
            f"{file.parent} has {free_bytes >> 20} MiB free, and the RAM image may need "
            f"{memory.image_bytes >> 20} MiB"
        )
