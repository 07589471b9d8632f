"""Plans a view: which snapshots it is of, and what will be made for it. Nothing is changed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.files.record import View
from zvmsnap.points import definition, locate
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import branches, mounts, zfs

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
    """A view of the point at a directory, where it stays; without one at a place of its own.

    Raises FilesImpossible, SnapshotMissing and ZfsFailed.
    """
    name = secrets.token_hex(4)
    work = config.staging_dir / _FOLDER / name
    liveness = Liveness.by(zfs.all_snapshots(guids_of([point.manifest])))
    disks = {disk.dataset: not disk.path for disk in point.manifest.disks}
    snapshots = {
        dataset: snapshot
        for dataset, snapshot in locate.snapshots_of(point, liveness).items()
        if dataset in disks
    }
    volumes = [snapshot for dataset, snapshot in snapshots.items() if disks[dataset]]
    known = branches.below(each.dataset for each in snapshots.values())
    for each in snapshots.values():
        if each.dataset in known and known[each.dataset].locked:
            raise FilesImpossible(
                f"{each.dataset}: its key is not loaded: zfs load-key {each.dataset}"
            )
    clones = tuple(
        (f"{each.dataset.rpartition('/')[0]}/zvmsnap-view-{name}-{number}", each.full_name)
        for number, each in enumerate(volumes)
    )
    if why := snapshot_name.too_long(clone for clone, _ in clones):
        raise FilesImpossible(why)
    return View(
        name=name,
        domain=point.manifest.domain,
        uuid=point.manifest.uuid,
        point=point.name,
        directory=str(point.directory),
        mountpoint=str(at or work / _MOUNTPOINT),
        work=str(work),
        owner=Process.of(os.getpid()),
        snapshots={dataset: each.full_name for dataset, each in snapshots.items()},
        clones=clones,
        by_device=by_device,
        made_here=definition.is_made_here(config, point.directory, point.manifest),
        stays=at is not None,
    )
