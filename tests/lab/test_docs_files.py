"""The page about files out of points, word for word: of `web`, which is off, and has a small Linux.

Each command boots the appliance of libguestfs, in emulation within emulation.
"""

from __future__ import annotations

import pytest
import readme
import scenario
from back import clones, zvmsnap
from terminal import run
from test_files import prepare, slow

from labkit import guests
from labkit.api import Lab
from labkit.domains import Disk

pytestmark = [pytest.mark.whole, pytest.mark.late]

DISK = "/tank/vm/web/disk0.raw"
SITE = "server { listen 80; }\n"
# What libguestfs takes for a Linux.
TREE = """
mkdir -p /root/tree/bin /root/tree/etc/nginx
cd /root/tree/etc
printf 'ID=debian\\nVERSION_ID="13"\\n' > os-release
echo '/dev/vda / ext4 defaults 0 1' > fstab
echo web > hostname
echo 'server { listen 80; }' > nginx/nginx.conf
"""


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        scenario.configure(lab)
        lab.run(f"zfs create tank/vm/web && {{ {TREE} }}")
        lab.run(f"truncate -s 48M {DISK} && mkfs.ext4 -q -F -d /root/tree {DISK}")
        guests.define(lab, guests.domain_xml("web", [Disk(DISK)]))
        zvmsnap(lab, "take", "web")
        prepare(lab)

    scenario.stage(
        lab_session, "web-with-files", lambda lab: scenario.with_code(lab, "ready"), make
    )
    return lab_session


def test_files(lab: Lab) -> None:
    library, for_xfs, listing, copy = readme.commands("Get files out of a point")
    for install in (library, for_xfs):
        assert "Installing: 0," in run(lab, install).stdout
    said = slow(lab, listing).stdout
    assert "nginx" in said and "fstab" in said
    slow(lab, copy)
    assert lab.get("/root/old/nginx/nginx.conf").decode() == SITE


def test_mount(lab: Lab) -> None:
    mount, look, unmount = readme.commands("Mount a point")
    slow(lab, mount)
    assert set(run(lab, look).stdout.split()) >= {"bin", "etc"}
    assert lab.get("/mnt/etc/nginx/nginx.conf").decode() == SITE
    run(lab, unmount)
    assert run(lab, look).stdout == ""
    assert clones(lab) == []
