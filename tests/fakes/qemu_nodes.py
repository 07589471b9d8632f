"""QEMU's block nodes, faked; the files below them are really open."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zvmsnap.common.errors import LibvirtFailed


class FakeNodes:
    """What QEMU has open beside what the paths of the disks lead to."""

    def __init__(self) -> None:
        self._files: dict[str, BinaryIO] = {}
        self._nodes: dict[str, dict[str, str]] = {}
        self.in_use: set[str] = set()
        self._bitmaps: dict[str, list[dict[str, Any]]] = {}

    def open(self, overlay: Path, base: str = "") -> None:
        """Open an overlay as libvirt does: its file, and the image in that, maybe on a base.

        The names are as seen of QEMU 7.2 and 10.0.
        """
        number = len(self._files) + 1
        file, image = f"libvirt-{number}-storage", f"libvirt-{number}-format"
        self._files[file] = overlay.open("r+b")
        options: dict[str, Any] = {"driver": "file", "filename": str(overlay)}
        below = {"driver": "raw", "file": {"driver": "file", "filename": base}} if base else None
        name = "json:" + json.dumps({"backing": below, "driver": "qcow2", "file": options})
        self._nodes[file] = {"node-name": file, "drv": "file", "file": str(overlay)}
        self._nodes[image] = {"node-name": image, "drv": "qcow2", "file": name}

    def add_bitmap(self, node: str, name: str, *, busy: bool = False) -> None:
        """A bitmap of a disk's node; QEMU uses a busy one for a job."""
        bitmap = {"name": name, "granularity": 65536, "persistent": True, "busy": busy}
        self._bitmaps.setdefault(node, []).append(bitmap)

    @property
    def bitmaps(self) -> set[tuple[str, str]]:
        """Node and name of each."""
        return {(node, each["name"]) for node, own in self._bitmaps.items() for each in own}

    @property
    def paths(self) -> list[str]:
        """As in /proc."""
        return [os.readlink(f"/proc/self/fd/{file.fileno()}") for file in self._files.values()]

    def answer(self, command: str, arguments: Mapping[str, str]) -> Any:
        """What QEMU's monitor says. Raises LibvirtFailed if it refuses."""
        if command == "query-named-block-nodes":
            of_disks = [{"node-name": n, "dirty-bitmaps": b} for n, b in self._bitmaps.items()]
            return [*self._nodes.values(), *of_disks]
        if command == "block-dirty-bitmap-remove":
            return self._remove_bitmap(arguments["node"], arguments["name"])
        assert command == "blockdev-del"
        name = arguments["node-name"]
        if name in self.in_use or name.replace("-storage", "-format") in self._nodes.keys() - {
            name
        }:
            raise LibvirtFailed(f"QEMU's {command}: QEMU refused: Node {name} is in use")
        del self._nodes[name]
        if name in self._files:
            self._files.pop(name).close()
        return {}

    def _remove_bitmap(self, node: str, name: str) -> dict[str, str]:
        (bitmap,) = (each for each in self._bitmaps[node] if each["name"] == name)
        if bitmap["busy"]:
            why = f"Dirty bitmap '{name}' is currently in use by another operation"
            raise LibvirtFailed(f"QEMU's block-dirty-bitmap-remove: QEMU refused: {why}")
        self._bitmaps[node].remove(bitmap)
        return {}
