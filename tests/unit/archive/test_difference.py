"""Images that we write ourselves are what qemu-img takes for right, and reads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.images import run_qemu_img
from zvmsnap.archive import difference
from zvmsnap.archive.difference import clusters_of

CLUSTER = difference.CLUSTER_BYTES


def test_clusters_of_ranges() -> None:
    ranges = [(CLUSTER * 5, CLUSTER * 5 + 1), (1, 2), (0, CLUSTER + 1), (CLUSTER * 9, 2**64)]
    assert list(clusters_of(ranges, CLUSTER * 11 - 5)) == [0, 1, 5, 9, 10]
    assert list(clusters_of([], CLUSTER)) == []
    assert list(clusters_of([(CLUSTER * 50, CLUSTER * 60)], CLUSTER)) == []


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img here")
@pytest.mark.parametrize("disk_bytes", [1 << 20, (700 << 20) + 1536])
def test_what_has_changed(tmp_path: Path, disk_bytes: int) -> None:
    """Also of a disk with more than one table of the second level, which ends within a cluster."""
    old, new, out = (tmp_path / name for name in ("old.raw", "new.raw", "out.qcow2"))
    with old.open("wb") as file:
        file.truncate(disk_bytes)
        file.write(os.urandom(300_000))
    subprocess.run(["cp", "--sparse=always", old, new], check=True)
    with new.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(140_000))  # zeros over data
        file.seek(disk_bytes - 700)
        file.write(b"end" * 200)
    run_qemu_img("convert", "-f", "raw", "-O", "qcow2", old, tmp_path / "below.qcow2")
    descriptor = os.open(new, os.O_RDONLY)
    ranges = [(100_000, 240_000), (disk_bytes - 700, disk_bytes - 100)]
    assert difference.write(descriptor, disk_bytes, ranges, out, "below.qcow2") == 4
    os.close(descriptor)
    run_qemu_img("check", out)
    run_qemu_img("compare", "-f", "raw", "-F", "qcow2", new, out)
    assert out.stat().st_size <= 11 * CLUSTER
    # What was not named is that of the image below.
    os.unlink(out)
    descriptor = os.open(new, os.O_RDONLY)
    assert difference.write(descriptor, disk_bytes, [], out, "below.qcow2") == 0
    os.close(descriptor)
    run_qemu_img("compare", "-f", "raw", "-F", "qcow2", old, out)
