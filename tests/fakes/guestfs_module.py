"""libguestfs, faked: a machine that has file systems, and shows them until they are unmounted."""

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class FakeMachine:
    """What libguestfs finds in the disks, and what is mounted on this host; it is the library."""

    def __init__(self) -> None:
        self.file_systems: dict[str, str] = {"/dev/sda": "ext4"}
        # By their roots: type, mountpoints and drives.
        self.systems: dict[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {}
        self.broken: set[str] = set()  # devices that cannot be mounted
        self.drives: list[tuple[str, str, bool]] = []
        self.inside: dict[str, str] = {}
        self.here: set[str] = set()
        self.acts: list[str] = []
        self.starts = True
        self.has_kvm = True  # that works
        self.is_emulated = False
        self.work = ""
        self._unmounted = threading.Event()

    def library(self) -> Any:
        """What `import guestfs` gives."""
        return SimpleNamespace(GuestFS=lambda python_return_dict: self)

    def is_mounted(self, directory: str) -> bool:
        return directory in self.here

    def unmount(self, directory: str, *, at_once: bool = False) -> None:
        self.acts.append("unmount")
        self.here.discard(directory)
        self._unmounted.set()

    # -- the methods of a handle

    def set_backend(self, name: str) -> None:
        assert name == "direct"

    def set_tmpdir(self, path: str) -> None:
        self.work = path

    def set_network(self, wanted: bool) -> None:
        assert not wanted

    def set_pgroup(self, wanted: bool) -> None:
        assert wanted

    def set_autosync(self, wanted: bool) -> None:
        assert not wanted

    def set_backend_setting(self, name: str, value: str) -> None:
        assert (name, value) == ("force_tcg", "1")
        self.is_emulated = True

    def add_drive_opts(self, path: str, format: str, readonly: bool) -> None:  # noqa: A002
        self.drives.append((path, format, readonly))

    def launch(self) -> None:
        self.acts.append("launch")
        if not self.starts or not (self.has_kvm or self.is_emulated):
            raise RuntimeError("guestfs_launch failed.\nThis usually means ...")

    def inspect_os(self) -> list[str]:
        return list(self.systems)

    def inspect_get_type(self, root: str) -> str:
        return self.systems[root][0]

    def inspect_get_mountpoints(self, root: str) -> dict[str, str]:
        return dict(self.systems[root][1])

    def inspect_get_drive_mappings(self, root: str) -> dict[str, str]:
        if not self.systems[root][2]:
            raise RuntimeError("no registry")
        return dict(self.systems[root][2])

    def list_filesystems(self) -> dict[str, str]:
        return self.file_systems

    def list_devices(self) -> list[str]:
        return [f"/dev/sd{chr(ord('a') + number)}" for number in range(len(self.drives))]

    def device_index(self, device: str) -> int:
        if device not in self.list_devices():
            raise RuntimeError("no such device")
        return self.list_devices().index(device)

    def umount_all(self) -> None:
        self.inside.clear()

    def mkmountpoint(self, place: str) -> None:
        self.acts.append(f"mkmountpoint {place}")

    def mount_ro(self, device: str, place: str) -> None:
        if device in self.broken:
            raise RuntimeError(f"mount: {device}: wrong fs type\x1b[2J")
        self.inside[place] = device

    def mount_local(self, directory: str, readonly: bool, options: str) -> None:
        assert readonly and options == "nosuid,nodev"
        self.here.add(directory)

    def mount_local_run(self) -> None:
        self._unmounted.wait(20)

    def shutdown(self) -> None:
        self.acts.append("shutdown")

    def close(self) -> None:
        self.acts.append("close")
