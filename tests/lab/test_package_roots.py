"""The packages on Debian 12, which lacks msgspec and has a typer that is too old.

In a root of it on this host, without a kernel of its own, systemd or libvirtd: they are installed
by apt, hooks and command run until they ask for ZFS or libvirt, and the packages are purged.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme
from packages import built

MMDEBSTRAP = (
    "mmdebstrap",
    "--mode=root",
    "--variant=minbase",
    "--components=main,contrib",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
# What apt would ask is answered; what a host has beside them, as libvirtd, is left out.
ANSWERS = ('APT::Get::Assume-Yes "true"', 'APT::Install-Recommends "false"')
CALLED = {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": "autosnap_2001-01-01_00:00:00_daily"}

pytestmark = [pytest.mark.whole, pytest.mark.long]


class Root:
    """A root of Debian 12 in which the packages are installed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it there, with an environment of its own."""
        return subprocess.run(
            ["chroot", str(self.path), *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def said(self, *command: str, **environment: str) -> str:
        """What it prints; it must not fail."""
        done = self.run(*command, **environment)
        assert done.returncode == 0, done
        return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    packages = built()
    folder = tmp_path_factory.mktemp("bookworm")
    path, copies = folder / "root", folder / "packages"
    copies.mkdir()
    for package in packages:
        shutil.copy(package, copies)
    (install,) = readme.commands("Debian 12 and Ubuntu 24.04")
    hooks = ('mkdir "$1/root/packages"', f"copy-in {copies}/. /root/packages",
             f'chroot "$1" sh -c "cd /root/packages && {install}"')
    command = [*MMDEBSTRAP, *(f"--aptopt={answer}" for answer in ANSWERS),
               *(f"--customize-hook={hook}" for hook in hooks), "bookworm", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    subprocess.run(["mount", "--bind", "/proc", path / "proc"], check=True)
    try:
        yield Root(path)
    finally:
        subprocess.run(["umount", path / "proc"], check=True)
        shutil.rmtree(path)


def test_own_python_packages_are_taken(root: Root) -> None:
    said = root.said("python3", "-c", (
        "import sys; sys.path.insert(0, '/usr/lib/zvmsnap')\n"
        "from zvmsnap.hooks import needed; needed.prefer_own()\n"
        "import msgspec, typer; print(msgspec.__file__, typer.__file__)"
    ))
    own = "/usr/lib/zvmsnap/python3.11"
    assert said == f"{own}/msgspec/__init__.py {own}/typer/__init__.py\n"
    assert root.run("python3", "-c", "import msgspec").returncode == 1


def test_the_command_runs(root: Root) -> None:
    assert root.said("zvmsnap", "--version").startswith("zvmsnap ")
    assert root.said("zvmsnap", "list") == "no points\n"
    assert root.said("zvmsnap", "idle") == "nothing is under way\n"
    assert "zvmsnap recover" in root.said("zvmsnap", "recover", "--help")
    completed = root.said("zvmsnap", _ZVMSNAP_COMPLETE="complete_bash",
                          COMP_WORDS="zvmsnap re", COMP_CWORD="1")
    assert {"recover", "restore"} <= set(completed.split())


@pytest.mark.parametrize("folder", ["/usr/lib/zvmsnap", "/opt/zvmsnap"])
def test_hooks_run(root: Root, folder: str) -> None:
    if folder == "/opt/zvmsnap":
        root.said("ln", "-sfn", "/usr/lib/zvmsnap", folder)
    for name in ("pruning", "post-snapshot"):
        done = root.run(f"{folder}/hooks/{name}", **CALLED)
        assert (done.returncode, done.stderr) == (0, "")  # nothing to do
        done = root.run(f"{folder}/hooks/{name}")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "SANOID_TARGET is not set" in line
    pre = root.run(f"{folder}/hooks/pre-snapshot", **CALLED)
    assert pre.returncode == 1  # there is no ZFS
    (line,) = pre.stderr.splitlines()
    assert "zfs" in line


def test_a_missing_python_package_is_one_line(root: Root) -> None:
    own = root.path / "usr/lib/zvmsnap/python3.11"
    own.rename(own.with_name("away"))
    try:
        done = root.run("/usr/lib/zvmsnap/hooks/pre-snapshot", **CALLED)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "the Python package msgspec is missing for /usr/bin/python3" in line
        assert root.run("zvmsnap", "list").returncode == 2
    finally:
        own.with_name("away").rename(own)


def test_purged(root: Root) -> None:
    for path in ("vault/web/autosnap_x", "journal", "staging"):
        (root.path / "var/lib/zvmsnap" / path).mkdir(parents=True, exist_ok=True)
    (root.path / "var/lib/zvmsnap/vault/web/autosnap_x/manifest.json").write_text("{}\n")
    (root.path / "etc/zvmsnap").mkdir(exist_ok=True)
    (root.path / "etc/zvmsnap/config.toml").write_text('mode = "crash"\n')
    said = root.said("dpkg", "--purge", "zvmsnap", "zvmsnap-python")
    assert "stay where they are" in said
    for path in ("vault/web/autosnap_x/manifest.json", "journal", "staging"):
        assert (root.path / "var/lib/zvmsnap" / path).exists(), path
    assert (root.path / "etc/zvmsnap/config.toml").exists()
    assert not (root.path / "usr/lib/zvmsnap").exists()
    left = root.said("find", "/usr", "/etc/systemd", "-name", "*zvmsnap*")
    assert left == ""
