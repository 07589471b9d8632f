"""Our own directories must not be on datasets that hold disks of a point: a restore moves those.

While it swaps datasets, their file systems are unmounted; afterwards they are of another time: the
vault would have lost its newer points, the journal the restore itself.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from zvmsnap.common.errors import DirectoryMisplaced
from zvmsnap.config.settings import Config
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount


def of(config: Config) -> dict[str, Path]:
    """The directories that must outlive a restore, by their keys in config.toml."""
    return {
        "vault": config.vault_dir,
        "journal": config.journal_dir,
        "staging": config.staging_dir,
        "locks": config.locks_dir,
    }


def datasets_of(directories: Mapping[str, Path], table: Sequence[Mount]) -> dict[str, str]:
    """The dataset of each of these directories that is on ZFS."""
    located = {
        name: mounts.dataset_of_path(os.path.realpath(path), table)
        for name, path in directories.items()
    }
    return {name: place[0] for name, place in located.items() if place}


def check(config: Config, datasets: Container[str], table: Sequence[Mount]) -> None:
    """Raises DirectoryMisplaced if one of them is on a dataset that a point will cover."""
    for name, dataset in datasets_of(of(config), table).items():
        if dataset in datasets:
            raise DirectoryMisplaced(
                f"{name} {of(config)[name]} is on {dataset}, which holds disks of the guest: no "
                f"restore could work: set `{name}` in config.toml to another file system"
            )
