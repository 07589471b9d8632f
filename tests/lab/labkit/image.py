"""The image: root disk, kernel, initial RAM disk and ssh keys, from the tree of packages."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from labkit import bootstrap, command, hostlock, progress, settings
from labkit.errors import LabError

RECIPE = settings.LAB_DIR / "image"


@dataclass(frozen=True)
class Image:
    """A published image; never changes."""

    directory: Path

    @property
    def key(self) -> str:
        """Changes when the image would."""
        return self.directory.name

    @property
    def root_disk(self) -> Path:
        """Raw ext4, the bottom layer of every lab's root disk."""
        return self.directory / "root.raw"

    @property
    def kernel(self) -> Path:
        """Given to QEMU as is."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Given to QEMU as is."""
        return self.directory / "initrd.img"

    @property
    def ssh_key(self) -> Path:
        """Private key that opens every lab of this image."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The image's host key, under the name `lab`."""
        return self.directory / "known_hosts"

    @property
    def states(self) -> Path:
        """States made from this image."""
        return self.directory / "states"


def key() -> str:
    """Changes when the image would."""
    return settings.digest([bootstrap.key(), RECIPE, Path(__file__), str(settings.ROOT_DISK_MIB)])


def image() -> Image:
    """The image of this checkout's recipe, built now if it never was."""
    directory = settings.cache_dir() / f"image-{key()}"
    if directory.exists():
        return Image(directory)
    if os.geteuid() != 0:
        raise LabError("only root can build the lab's image")
    with hostlock.exclusive("build-image"):
        if not directory.exists():
            _build(directory)
    for old in settings.cache_dir().glob("image-*"):
        if old != directory and hostlock.remove_unused(old):
            progress.say(f"removed {old.name}, of an older recipe")
    return Image(directory)


def _build(directory: Path) -> None:
    tree = bootstrap.tree()
    keep_tree = hostlock.in_use(tree.name)
    unfinished = directory.with_name(f".unfinished-{directory.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    root = unfinished / "root"
    log = unfinished.with_name("image.log")
    log.unlink(missing_ok=True)
    try:
        with progress.step("making the image from the tree of packages"):
            command.run(["cp", "-a", "--reflink=auto", tree, root], timeout_s=600)
            command.run(["rsync", "-rlp", "--chown=root:root", f"{RECIPE}/files/", f"{root}/"])
            _finish_inside(root, log)
            _keys(unfinished, root)
            for name in ("vmlinuz", "initrd.img"):
                shutil.copyfile(root / "boot" / name, unfinished / name)
            disk = unfinished / "root.raw"
            with disk.open("wb") as file:
                file.truncate(settings.ROOT_DISK_MIB << 20)
            command.run(["mkfs.ext4", "-q", "-F", "-L", "lab", "-m", "0", "-d", root, disk],
                        timeout_s=600, log=log)
            shutil.rmtree(root)
            (unfinished / "states").mkdir()
        unfinished.rename(directory)
    finally:
        os.close(keep_tree)
        shutil.rmtree(unfinished, ignore_errors=True)


def _finish_inside(root: Path, log: Path) -> None:
    script = root / "finish"
    shutil.copy(RECIPE / "finish", script)
    command.run(["chroot", root, "/finish"], timeout_s=1200, log=log)
    script.unlink()


def _keys(directory: Path, root: Path) -> None:
    private = directory / "id_ed25519"
    command.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", private])
    authorized = root / "root/.ssh/authorized_keys"
    shutil.copyfile(private.with_suffix(".pub"), authorized)
    authorized.chmod(0o600)
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (directory / "known_hosts").write_text(f"lab {host_key}")
