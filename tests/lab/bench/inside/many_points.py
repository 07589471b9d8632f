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


def main(model: str, vault: str, root: str, count: str) -> None:
    """Make them."""
    first = datetime(2024, 1, 1)
    moments = [
        f"autosnap_{first + timedelta(hours=number):%Y-%m-%d_%H:%M:%S}_hourly"
        for number in range(int(count) // GUESTS)
    ]
    for guest in range(GUESTS):
        for dataset in datasets_of(root, guest):
            libzfs_core.lzc_create(dataset.encode())
    everything = [each for guest in range(GUESTS) for each in datasets_of(root, guest)]
    for moment in moments:
        libzfs_core.lzc_snapshot([f"{dataset}@{moment}".encode() for dataset in everything])
    pool_guid = int(
        subprocess.run(
            ["zpool", "get", "-Hpo", "value", "guid", root.split("/")[0]],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    guids = {name: int(guid) for name, guid in listed(root, "filesystem", "name,guid")}
    snapshots = {}
    for name, guid, txg in listed(root, "snapshot", "name,guid,createtxg"):
        snapshots[name] = int(guid), int(txg)
    manifest = json.loads(Path(model, "manifest.json").read_text())
    files = [path for path in Path(model).iterdir() if path.name != "manifest.json"]
    for guest in range(GUESTS):
        owner = str(uuid.uuid4())
        disk = manifest["disks"][0] | {"dataset": f"{root}/g{guest}"}
        for position, moment in enumerate(moments):
            references = [
                {
                    "dataset": dataset,
                    "name": moment,
                    "guid": snapshots[f"{dataset}@{moment}"][0],
                    "createtxg": snapshots[f"{dataset}@{moment}"][1],
                    "dataset_guid": guids[dataset],
                    "pool_guid": pool_guid,
                }
                for dataset in datasets_of(root, guest)
            ]
            point = manifest | {
                "domain": f"g{guest}",
                "uuid": owner,
                "run": moment,
                "capture": f"{owner}.{position:08x}",
                "snapshots": references,
                "disks": [disk],
            }
            directory = Path(vault, f"g{guest}", moment)
            directory.mkdir(parents=True, mode=0o700)
            for file in files:
                shutil.copy(file, directory)
            (directory / "manifest.json").write_text(json.dumps(point))
    print(len(moments) * GUESTS, len(snapshots))


if __name__ == "__main__":
    main(*sys.argv[1:])
