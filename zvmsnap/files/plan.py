"""Plans a view: what it is called, and where its files are seen. Nothing is changed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.files.record import View
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import mounts

_FOLDER = "views"  # in staging
_MOUNTPOINT = "files"


def mountpoint(directory: Path) -> Path:
    """The directory that somebody names, where a view may stay. Raises FilesImpossible."""
    real = Path(os.path.realpath(directory))
    try:
        if any(real.iterdir()):
            raise FilesImpossible(f"{directory}: is not empty; say another directory")
    except OSError as error:
        raise FilesImpossible(f"{directory}: {error.strerror}; say an empty directory") from error
    if any(each.mountpoint == str(real) for each in mounts.read_table()):
        raise FilesImpossible(f"{directory}: something is mounted there already")
    return real


def plan_view(
    config: Config, point: RestorePoint, at: Path | None = None, *, by_device: bool = False
) -> View:
    """A view of the point at a directory, where it stays; without one at a place of its own."""
    name = secrets.token_hex(4)
    work = config.staging_dir / _FOLDER / name
    return View(
        name=name,
        domain=point.manifest.domain,
        uuid=point.manifest.uuid,
        point=point.name,
        directory=str(point.directory),
        mountpoint=str(at or work / _MOUNTPOINT),
        work=str(work),
        owner=Process.of(os.getpid()),
        by_device=by_device,
        stays=at is not None,
    )
