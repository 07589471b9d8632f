"""A host below a directory, on which `zvmsnap check` finds nothing until a test spoils it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import zvmsnap
from tests.fakes.agent import FakeAgent
from tests.fakes.guest import OTHER, UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from tests.fakes.nas import FakeNas
from zvmsnap.check import run
from zvmsnap.check.finding import Colour, Finding
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.config.settings import Config
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.types import Dataset, Pool

CHECKOUT = Path(zvmsnap.__file__).parents[1]
WEB, VAULT = "tank/vm/web", "cheap/vault"
UNITS = """\
Id=zvmsnap-recover.service
LoadState=loaded
UnitFileState=enabled
ExecStart={ path=/usr/bin/zvmsnap ; argv[]=/usr/bin/zvmsnap recover ; }

Id=sanoid.service
LoadState=loaded
Result=success
Environment=TZ=UTC
TimeoutStartUSec=infinity

Id=sanoid.timer
LoadState=loaded
UnitFileState=enabled
ActiveState=active
"""


class CheckedHost:
    """One guest, `web`, with its disk in tank/vm/web; sanoid.conf is our example."""

    def __init__(self, root: Path, host: FakeHost, patch: pytest.MonkeyPatch) -> None:
        self.root = root / "host"
        self.host = host
        self.patch = patch
        self.datasets: dict[str, Dataset] = {}
        self.properties: dict[str, dict[str, str]] = {}
        self.user_properties: list[tuple[str, str, str]] = []
        self.pools = {
            name: Pool(name, "ONLINE", 1 << 40, 1 << 39, 50) for name in ("tank", "cheap")
        }
        self.table = [mounts.Mount(1, 0, "/", "/", "", "xfs")]
        for name in ("tank", "tank/vm", WEB, "cheap", VAULT):
            self.dataset(name)
        self.dataset(f"{WEB}/data", volume=True)
        host.known.clear()
        self.web = self.guest("web", UUID, WEB)
        self._write_files()
        self._configure(root)
        self.nas = FakeNas(self.root / "nas", patch)
        self._really_properties_of = zfs.properties_of
        patch.setattr(zfs, "pools", self._pools)
        patch.setattr(zfs, "datasets", self._datasets)
        patch.setattr(zfs, "properties_of", self._properties_of)
        patch.setattr(zfs, "user_properties", self._user_properties)
        patch.setattr(mounts, "read_table", lambda: self.table)

    # -- what a test spoils

    @property
    def sanoid_conf(self) -> Path:
        return self.root / "etc/sanoid/sanoid.conf"

    def edit(self, old: str, new: str) -> None:
        """Change sanoid.conf."""
        text = self.sanoid_conf.read_text()
        assert old in text
        self.sanoid_conf.write_text(text.replace(old, new))

    def config(self, text: str) -> None:
        """Append to config.toml."""
        with self.config_file.open("a") as file:
            file.write(f"{text}\n")

    def units(self, old: str, new: str) -> None:
        """Change what systemctl says."""
        path = self.root / "units"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def dataset(self, name: str, *, volume: bool = False, **changes: object) -> Path:
        """Make a dataset, and mount it; returns where."""
        mountpoint = self.root / "mnt" / name
        kind = "volume" if volume else "filesystem"
        made = Dataset(
            name,
            kind,
            compressed=True,
            mounted=not volume,
            mountpoint="" if volume else str(mountpoint),
            canmount="" if volume else "on",
        )
        self.datasets[name] = replace(made, **changes)  # type: ignore[arg-type]
        self.properties[name] = {
            "recordsize": str(16 << 10),
            "compression": "zstd",
            "encryption": "off",
            "mountpoint": str(mountpoint),
            "zvmsnap:keep-memory": "24",
        }
        if not volume:
            mountpoint.mkdir(parents=True, exist_ok=True)
            above = [m for m in self.table if mountpoint.is_relative_to(m.mountpoint)]
            parent = max(above, key=lambda m: len(m.mountpoint)).number
            number = len(self.table) + 1
            self.table.append(mounts.Mount(number, parent, "/", str(mountpoint), name, "zfs"))
        return mountpoint

    def guest(self, name: str, uuid: str = OTHER, *datasets: str) -> FakeGuest:
        """A guest with a disk in each of these datasets."""
        disks = {
            f"vd{chr(ord('a') + number)}": make_base(self.root / "mnt" / dataset / f"{name}.raw")
            for number, dataset in enumerate(datasets)
        }
        guest = FakeGuest(name, uuid, **disks)
        guest.agent = FakeAgent()
        self.host.known.append(guest)
        return guest

    def program(self, path: str, text: str = "exit 0") -> Path:
        """Install a program of a shell's commands."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file

    def file(self, path: str, text: str) -> Path:
        """Write a file of the host."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    # -- what is found

    def findings(self) -> list[Finding]:
        return run.all_findings(self.root)

    def trouble(self) -> list[Finding]:
        """What is not green."""
        return [each for each in self.findings() if each.colour is not Colour.GREEN]

    def _write_files(self) -> None:
        self.program("usr/sbin/sanoid", "$::VERSION = '2.2.0';")
        for program in ("qemu-img", "rsync", "ssh", "systemd-run", "syncoid", "python3"):
            self.program(f"usr/bin/{program}")
        self.program("usr/bin/zvmsnap")
        self.program("usr/sbin/apparmor_parser")
        self.file("sys/module/apparmor/parameters/enabled", "Y\n")
        self.program("usr/bin/systemctl", self._systemctl())
        self.program("usr/sbin/zfs", "echo zfs-2.3.2-2; echo zfs-kmod-2.3.2-2")
        self.program("usr/sbin/zpool", "echo active")
        for hook in ("pre-snapshot", "post-snapshot", "pruning"):
            self.program(f"opt/zvmsnap/hooks/{hook}")
        self.file("units", UNITS)
        self.file("sys/module/zfs/version", "2.3.2-2\n")
        self.file("sys/module/zfs/parameters/zfs_bclone_enabled", "1\n")
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.file("etc/sanoid/sanoid.conf", (CHECKOUT / "sanoid.conf.example").read_text())

    def _systemctl(self) -> str:
        return f"""\
echo "$@" >> {self.root}/systemctl.log
case "$*" in
show*libvirtd*) echo Id=libvirtd.service; echo ActiveState=active ;;
show*) cat {self.root}/units ;;
is-enabled*) echo enabled ;;
esac"""

    def _configure(self, root: Path) -> None:
        self.config_file = root / "config.toml"
        vault = self.root / "mnt" / VAULT
        own = {"vault": vault, "staging": root / "staging", "journal": root / "journal"}
        own["locks"] = root / "locks"
        text = "".join(f'{key} = "{path}"\n' for key, path in own.items())
        self.config_file.write_text(text)
        self.patch.setenv("ZVMSNAP_CONFIG", str(self.config_file))
        own["staging"].mkdir(mode=0o711)
        # Those of pytest are for its user alone.
        for folder in (root, *root.parents):
            if not folder.stat().st_mode & 0o011:
                folder.chmod(folder.stat().st_mode | 0o011)

    @property
    def settings(self) -> Config:
        """As commands read it."""
        return msgspec.toml.decode(self.config_file.read_bytes(), type=Config)

    def _pools(self, names: Sequence[str] = ()) -> dict[str, Pool]:
        return {name: pool for name, pool in self.pools.items() if name in names or not names}

    def _datasets(self, tops: Sequence[str] = ()) -> dict[str, Dataset]:
        return {n: d for n, d in self.datasets.items() if n.partition("/")[0] in tops or not tops}

    def _properties_of(
        self, names: Sequence[str], datasets: Sequence[str], remote: RemoteHost = HERE
    ) -> dict[str, dict[str, str]]:
        if remote.host:
            return self._really_properties_of(names, datasets, remote)
        return {
            name: {k: v for k, v in self.properties[name].items() if k in names}
            for name in datasets
            if name in self.properties
        }

    def _user_properties(self, datasets: Sequence[str], prefix: str) -> list[tuple[str, str, str]]:
        return [e for e in self.user_properties if e[0] in datasets and e[1].startswith(prefix)]


Spoil = Callable[[CheckedHost], object]
