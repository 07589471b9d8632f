from pathlib import Path

import pytest

from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount

MOUNTINFO = b"""\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /tank rw,relatime shared:2 - zfs tank rw,xattr,noacl
24 23 0:22 / /tank/web rw shared:3 master:4 - zfs tank/web rw
25 24 0:23 / /tank/web/data rw - zfs tank/web/data rw
26 23 0:24 / /tank/My\\040VMs rw - zfs tank/My\\040VMs rw
27 22 0:22 /images /srv/images rw - zfs tank/web rw
28 22 0:25 / /mnt rw - ext4 /dev/vdb rw
29 28 0:26 / /mnt rw - zfs tank/over rw
30 22 0:27 / /hidden/deep rw - zfs tank/deep rw
31 22 0:28 / /hidden rw - zfs tank/hidden rw
32 31 0:29 / /hidden/new rw - zfs tank/new rw
33 22 0:30 / /odd\\011\\012\\134\xc2\x85caf\xe9 rw - zfs tank/odd rw
34 24 0:31 / /tank/web/.zfs/snapshot/a rw - zfs tank/web@a rw
35 22 0:32 / /tank/web2 rw - tmpfs  rw
36 22 0:33 / /srv/x\ry rw,nosuid,nodev - fuse.sshfs far: rw
37 22 0:34 / /cr\r\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8x rw - zfs tank/cr rw
"""

LOCATIONS = [
    pytest.param("/tank/web/a.qcow2", ("tank/web", "a.qcow2"), id="file"),
    pytest.param("/tank/web/sub/a.qcow2", ("tank/web", "sub/a.qcow2"), id="file in a directory"),
    pytest.param("/tank/web", ("tank/web", "."), id="the mountpoint itself"),
    pytest.param("/tank/web/data/b.raw", ("tank/web/data", "b.raw"), id="nested mount"),
    pytest.param("/tank/webs/a", ("tank", "webs/a"), id="a longer name is another directory"),
    pytest.param("/tank/My VMs/a b.raw", ("tank/My VMs", "a b.raw"), id="blanks"),
    pytest.param("/srv/images/a.raw", ("tank/web", "images/a.raw"), id="bind mount of a directory"),
    pytest.param("/srv/images", ("tank/web", "images"), id="a bind mount itself"),
    pytest.param("/mnt/a.raw", ("tank/over", "a.raw"), id="mounted over another"),
    pytest.param("/hidden/deep/a", ("tank/hidden", "deep/a"), id="hidden by a later mount above"),
    pytest.param("/hidden/new/a", ("tank/new", "a"), id="mounted on the later one"),
    pytest.param("/odd\t\n\\\x85caf\udce9/a", ("tank/odd", "a"), id="any byte in a mountpoint"),
    pytest.param("/cr\r\x0b\x0c\x1c\x85\u2028x/a", ("tank/cr", "a"), id="what ends lines"),
    pytest.param("/tank/web/.zfs/snapshot/a/b", ("tank/web@a", "b"), id="inside a snapshot"),
    pytest.param("/tank/web2/a", ("tank", "web2/a"), id="mount below the visible one"),
    pytest.param("/var/lib/a", None, id="not ZFS"),
    pytest.param("/", None, id="root"),
]


@pytest.fixture
def table(tmp_path: Path) -> list[Mount]:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    return mounts.read_table(path)


@pytest.mark.parametrize(("path", "expected"), LOCATIONS)
def test_dataset_of_path(table: list[Mount], path: str, expected: tuple[str, str] | None) -> None:
    assert mounts.dataset_of_path(path, table) == expected


@pytest.mark.parametrize(
    ("path", "kind"), [("/var", "ext4"), ("/tank/web/a", "zfs"), ("/tank/web2/a", "zfs")]
)
def test_kind_of_path(table: list[Mount], path: str, kind: str) -> None:
    assert mounts.kind_of_path(path, table) == kind
    assert mounts.kind_of_path(path, []) == ""


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        pytest.param("tank/web", "/tank/web", id="mounted"),
        pytest.param("tank/My VMs", "/tank/My VMs", id="blanks"),
        pytest.param("tank/over", "/mnt", id="mounted over another"),
        pytest.param("tank/deep", None, id="hidden"),
        pytest.param("tank/nowhere", None, id="not mounted"),
    ],
)
def test_mountpoint_of(table: list[Mount], dataset: str, expected: str | None) -> None:
    assert mounts.mountpoint_of(dataset, table) == expected


def test_a_dataset_of_which_only_a_directory_is_mounted_has_no_mountpoint() -> None:
    table = [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/images", "/srv", "tank/web")]
    assert mounts.mountpoint_of("tank/web", table) is None


@pytest.mark.parametrize(
    "root",
    [
        pytest.param(Mount(1, 1, "/", "/", "rpool/root"), id="its own parent"),
        pytest.param(Mount(1, 99, "/", "/", "rpool/root"), id="parent out of sight"),
        pytest.param(Mount(1, 0, "/", "/", "rpool/root"), id="parent 0"),
    ],
)
def test_root_on_zfs(root: Mount) -> None:
    table = [Mount(2, 1, "/", "/home", "rpool/home"), root]
    assert mounts.dataset_of_path("/etc/a", table) == ("rpool/root", "etc/a")
    assert mounts.dataset_of_path("/home/a", table) == ("rpool/home", "a")


def test_the_mount_table_of_this_host() -> None:
    table = mounts.read_table()
    assert any(mount.mountpoint == "/" for mount in table)
    assert not any(mount.dataset for mount in table if mount.mountpoint == "/proc")
