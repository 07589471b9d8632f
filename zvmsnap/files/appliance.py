"""libguestfs: a small machine of its own looks into the guest's disks, never this host's kernel.

It has no network, and what it writes (a journal that is replayed) goes into overlays of ours.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from zvmsnap.common import foreign, log
from zvmsnap.common.errors import FilesImpossible, LibguestfsMissing
from zvmsnap.files.images import Image
from zvmsnap.files.layout import Layout, System, layout

PACKAGE = "python3-guestfs"
# Other users, set-user-ID and devices of the guest mean nothing here.
_OPTIONS = "nosuid,nodev"
_KVM = Path("/dev/kvm")


def check_installed() -> None:
    """Raises LibguestfsMissing, which names the package."""
    _library()


def _library() -> Any:
    try:
        import guestfs
    except ImportError as error:
        raise LibguestfsMissing(
            f"libguestfs for Python is missing ({error}): apt install {PACKAGE}"
        ) from error
    return guestfs


class Appliance:
    """The machine, which runs, with the file systems of a guest mounted inside of it."""

    def __init__(self, handle: Any, images: Sequence[Image]) -> None:
        self._handle = handle
        self._targets = [image.target for image in images]

    def mount(self, *, by_device: bool) -> tuple[Layout, list[str]]:
        """Mount the guest's file systems, read-only; returns how, and what could not be mounted.

        Raises FilesImpossible if nothing could.
        """
        with _told("looking for file systems"):
            found = layout(
                [] if by_device else list(self._systems()),
                self._handle.list_filesystems,
                self._target,
                by_device=by_device,
            )
            self._handle.umount_all()
        mounted, failures = [], []
        for place, device in found.places:
            try:
                if found.made:
                    self._handle.mkmountpoint(place)
                self._handle.mount_ro(device, place)
                mounted.append(place)
            except RuntimeError as error:
                failures.append(f"{device} is not mounted at {place}: {foreign.line(str(error))}")
        if not mounted or not found.needed <= set(mounted):
            whys = "; ".join(failures) or "its disks have none that is known"
            raise FilesImpossible(f"no file system can be mounted: {whys}")
        return found, failures

    def show(self, directory: str) -> None:
        """Let the file systems be seen below a directory of this host. Raises FilesImpossible."""
        with _told(f"mounting at {directory}"):
            self._handle.mount_local(directory, readonly=True, options=_OPTIONS)

    def serve(self) -> None:
        """Answer whoever reads there, until it is unmounted. Raises FilesImpossible."""
        with _told("showing its files"):
            self._handle.mount_local_run()

    def _systems(self) -> Iterator[System]:
        handle = self._handle
        for root in handle.inspect_os():
            drives: dict[str, str] = {}
            with suppress(RuntimeError):  # of no Windows, or without a registry
                drives = handle.inspect_get_drive_mappings(root)
            yield System(
                root,
                handle.inspect_get_type(root),
                handle.inspect_get_mountpoints(root),
                drives,
            )

    def _target(self, device: str) -> str:
        """The guest's name for a disk."""
        with suppress(RuntimeError, IndexError):
            return self._targets[int(self._handle.device_index(device))]
        return str(device).rpartition("/")[2]


@contextmanager
def launched(images: Sequence[Image], work: str, closing: threading.Event) -> Iterator[Appliance]:
    """Start it with these disks, read-only; its own files are in `work`.

    Raises FilesImpossible; also when its machine was killed since it is `closing`.
    """
    library = _library()
    # It would be asked for a program, or an appliance, of somebody else's choice.
    for name in ("LIBGUESTFS_ATTACH_METHOD", "LIBGUESTFS_BACKEND", "LIBGUESTFS_HV"):
        os.environ.pop(name, None)
    with ExitStack() as ended:
        handle = _begun(library, images, work, ended)
        try:
            with _told("starting libguestfs"):
                handle.launch()
        except FilesImpossible as error:
            if closing.is_set() or not _KVM.exists():
                raise
            # As on a virtual machine whose hypervisor has it half.
            log.plain().info("%s; once more, without KVM", error)
            ended.close()
            handle = _begun(library, images, work, ended)
            with _told("starting libguestfs without KVM"):
                handle.set_backend_setting("force_tcg", "1")
                handle.launch()
        yield Appliance(handle, images)


def _begun(library: Any, images: Sequence[Image], work: str, ended: ExitStack) -> Any:
    """A handle that can be launched, and is closed in the end."""
    handle = library.GuestFS(python_return_dict=True)
    ended.callback(_close, handle)
    with _told("preparing libguestfs"):
        handle.set_backend("direct")
        handle.set_tmpdir(work)
        handle.set_network(False)
        handle.set_pgroup(True)
        handle.set_autosync(False)  # nothing is written that anybody will read
        for image in images:
            handle.add_drive_opts(image.path, format="qcow2", readonly=True)
    return handle


def _close(handle: Any) -> None:
    with suppress(RuntimeError):
        handle.shutdown()
    handle.close()


@contextmanager
def _told(doing: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise FilesImpossible(f"{doing}: {foreign.line(str(error))}") from error
