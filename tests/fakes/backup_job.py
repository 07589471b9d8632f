"""libvirt's backup job and checkpoints, faked: real images, by qemu-img.

What a disk held at each checkpoint is kept, so that an increment is what is other than then, on
top of the guest's own image, as QEMU makes it.
"""

import stat
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.backup_scene import Scene
from tests.fakes.images import run_qemu_img
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.virt.domain_xml import Metadata


class FakeBackupJob:
    """The job copies the disks at once, and is over when it was asked for twice.

    `broken` has the bitmaps that are missing, or were in use, by checkpoint and target; `refuses`
    says why libvirt refuses what it is asked for, "" if it does not. `after` comes after the start.
    With `is_thick` nothing of the disks is a hole, as in a logical volume.
    """

    def __init__(self, scene: Scene, patch: pytest.MonkeyPatch) -> None:
        self.scene = scene
        self.xml = ""
        self.asked = 0
        self.why = ""
        self.ends = True
        self.is_thick = False
        self.calls: list[str] = []
        self.begun: list[tuple[ET.Element, ET.Element | None]] = []
        self.broken: set[tuple[str, str]] = set()
        self.refuses: Callable[[ET.Element, ET.Element | None], str] = lambda _xml, _checkpoint: ""
        self.after: Callable[[], None] = lambda: None
        self._then: dict[tuple[str, str], Path] = {}
        patch.setattr(scene.host, "begin_backup", self.begin, raising=False)
        patch.setattr(scene.host, "backup_xml", self.about, raising=False)
        patch.setattr(scene.host, "why_backup_failed", lambda _uuid: self.why, raising=False)
        patch.setattr(scene.guest, "job_kind", lambda: "backup" if self.xml else "")
        patch.setattr(scene.guest, "abort_job", self.abort)

    def begin(self, _uuid: str, xml: str, checkpoint_xml: str | None = None) -> None:
        root = ET.fromstring(xml)
        checkpoint = ET.fromstring(checkpoint_xml) if checkpoint_xml else None
        self.begun.append((root, checkpoint))
        if why := self.refuses(root, checkpoint):
            raise LibvirtFailed(f"beginning a backup: {why}", 84)
        disks = root.findall("disks/disk[@backup='yes']")
        name = "" if checkpoint is None else checkpoint.findtext("name", "")
        marked = (
            [] if checkpoint is None else checkpoint.findall("disks/disk[@checkpoint='bitmap']")
        )
        for disk in disks:
            self._check(disk)
        for disk in marked:
            self._check_marked(disk.get("name", ""))
        for disk in disks:
            self._write(disk)
        for disk in marked:
            self._mark(name, disk.get("name", ""))
        if name:
            bitmaps = {disk.get("name", ""): name for disk in marked}
            self.scene.guest.checkpoints.append(Metadata(name, int(time.time()), bitmaps))
        self.xml, self.asked = xml, 0
        self.after()

    def _check(self, disk: ET.Element) -> None:
        target, since = disk.get("name", ""), disk.get("incremental", "")
        assert (disk.get("backupmode") == "incremental") is bool(since)
        known = {each.name: each for each in self.scene.guest.checkpoints}
        if since and since not in known:
            raise LibvirtFailed(f"beginning a backup: Checkpoint '{since}' not found", 102)
        if since and ((since, target) in self.broken or target not in known[since].bitmaps):
            raise LibvirtFailed(
                f"beginning a backup: missing or broken bitmap '{since}' for disk '{target}'", 109
            )

    def _check_marked(self, target: str) -> None:
        kind = self.scene.guest.format_of(self._image(target))
        if kind != "qcow2":
            raise LibvirtFailed(f"checkpoint for disk {target} unsupported for type {kind}", 67)

    def _write(self, disk: ET.Element) -> None:
        named, target = disk.find("target"), disk.get("name", "")
        assert named is not None
        path = Path(named.get("file", ""))
        # QEMU's user must pass to it, and libvirt does not overwrite what is there.
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o001 and not path.exists()
        image, kind = self._image(target), self.scene.guest.format_of(self._image(target))
        since = disk.get("incremental", "")
        if not since:
            zeros = ["-S", "0"] if self.is_thick else []
            run_qemu_img("convert", *zeros, "-f", kind, "-O", "qcow2", image, path)
            return
        run_qemu_img("create", "-q", "-f", "qcow2", "-b", image, "-F", kind, path)
        then = self._then[since, target]
        run_qemu_img("rebase", "-q", "-f", "qcow2", "-b", then, "-F", "qcow2", path)
        run_qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", image, "-F", kind, path)

    def _mark(self, name: str, target: str) -> None:
        then = self._then[name, target] = self.scene.root / f"{name}.{target}"
        run_qemu_img("convert", "-O", "qcow2", self._image(target), then)

    def _image(self, target: str) -> str:
        return self.scene.guest.live[target]

    def about(self, _uuid: str) -> str:
        self.asked += 1
        if self.xml and self.ends and self.asked > 2:
            self.xml = ""
        if not self.xml:
            raise LibvirtFailed("asking for a backup: no domain backup job present", 101)
        return self.xml

    def abort(self) -> None:
        self.calls.append("abort")
        self.xml = ""

    def modes(self) -> dict[str, str]:
        """The checkpoint since which the last job pushed each disk; "" if all of it."""
        disks = self.begun[-1][0].findall("disks/disk[@backup='yes']")
        return {disk.get("name", ""): disk.get("incremental", "") for disk in disks}
