"""Runs in the lab: makes many points of one that was really taken, with snapshots that exist.

many_points.py MODEL VAULT ROOT COUNT: MODEL is the directory of that point; below the dataset ROOT
come ten guests with ten datasets each, so each point has ten snapshots.
"""

import json
import shutil
import subprocess
import sys
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import libzfs_core

GUESTS = 10
DATASETS = 10


def datasets_of(root: str, guest: int) -> list[str]:
    """The datasets of a guest: one, and those below it."""
    top = f"{root}/g{guest}"
    return [top, *(f"{top}/d{number}" for number in range(1, DATASETS))]


def listed(root: str, kind: str, columns: str) -> list[list[str]]:
    """What `zfs list` says of all below the root."""
    argv = ["zfs", "list", "-Hp", "-r", "-t", kind, "-o", columns, root]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [line.split("\t") for line in said.splitlines()]


def make_snapshots(root: str, moments: list[str]) -> None:
    """Make the datasets, and of all of them a snapshot for each moment."""
    datasets = [each for guest in range(GUESTS) for each in datasets_of(root, guest)]
    for dataset in datasets:
        libzfs_core.lzc_create(dataset.encode())
    for moment in moments:
        libzfs_core.lzc_snapshot([f"{dataset}@{moment}".encode() for dataset in datasets])


def references(root: str) -> dict[str, dict[str, object]]:
    """What a manifest says of each snapshot, by its full name."""
    argv = ["zpool", "get", "-Hpo", "value", "guid", root.partition("/")[0]]
    pool_guid = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    datasets = {name: int(guid) for name, guid in listed(root, "filesystem", "name,guid")}
    return {
        full_name: {
            "dataset": full_name.partition("@")[0],
            "name": full_name.partition("@")[2],
            "guid": int(guid),
            "createtxg": int(txg),
            "dataset_guid": datasets[full_name.partition("@")[0]],
            "pool_guid": pool_guid,
        }
        for full_name, guid, txg in listed(root, "snapshot", "name,guid,createtxg")
    }


def write_points(model: Path, vault: Path, root: str, moments: list[str]) -> None:
    """Write a point for each guest and moment: the model's files, and a manifest of its own."""
    known = references(root)
    manifest = json.loads((model / "manifest.json").read_text())
    files = [path for path in model.iterdir() if path.name != "manifest.json"]
    for guest in range(GUESTS):
        owner = str(uuid.uuid4())
        for position, moment in enumerate(moments):
            point = manifest | {
                "domain": f"g{guest}",
                "uuid": owner,
                "run": moment,
                "capture": f"{owner}.{position:08x}",
                "snapshots": [known[f"{each}@{moment}"] for each in datasets_of(root, guest)],
                "disks": [manifest["disks"][0] | {"dataset": f"{root}/g{guest}"}],
            }
            directory = vault / f"g{guest}" / moment
            directory.mkdir(parents=True, mode=0o700)
            for file in files:
                shutil.copy(file, directory)
            (directory / "manifest.json").write_text(json.dumps(point))


def main(model: str, vault: str, root: str, count: str) -> None:
    """Make them."""
    first = datetime(2024, 1, 1)
    moments = [
        f"autosnap_{first + timedelta(hours=number):%Y-%m-%d_%H:%M:%S}_hourly"
        for number in range(int(count) // GUESTS)
    ]
    make_snapshots(root, moments)
    write_points(Path(model), Path(vault), root, moments)


if __name__ == "__main__":
    main(*sys.argv[1:])
