"""What runs in the lab: when a guest has gone to another time, and the usual hooks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from bench.inside.next_count import Log

USUAL = Path(__file__).resolve().parents[2] / "lab" / "bench" / "usual"
VIRSH = """#!/bin/bash
echo "$*" >> "$CALLS"
case $1 in
    list) printf 'web\\nother\\n\\n' ;;
    domblklist)
        printf ' Target   Source\\n---------\\n'
        [ "$2" = web ] && printf ' vda   %s\\n vdb   /dev/zvol/tank/vm/web/data1\\n\\n' \\
            "${VDA:-/tank/vm/web/disk0.raw}"
        ;;
    snapshot-list) [ "$2" = web ] && echo s1 ;;
esac
exit 0
"""


def test_a_count_that_follows_is_no_jump_and_any_other_is(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text("B\n00000001\n00000002\n")
    log = Log(str(path))
    with path.open("a") as file:
        file.write("00000003\n0000")
        file.flush()
        assert not log.jumped()
        file.write("0004\n")
        file.flush()
        assert not log.jumped()
        # It goes on in another time, in the middle of a line.
        file.write("000000000002\n")
        file.flush()
        assert log.jumped()


def test_the_first_count_of_a_log_that_did_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "look-web.log"
    log = Log(str(path))
    assert not log.jumped()
    path.write_text("")
    assert not log.jumped()
    path.write_text("0000001f\n")
    assert log.jumped()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """virsh does nothing but note how it was called."""
    virsh = tmp_path / "virsh"
    virsh.write_text(VIRSH)
    virsh.chmod(0o755)
    noted = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(noted))
    monkeypatch.setenv("SANOID_TARGET", "tank/vm/web")
    monkeypatch.setenv("SANOID_SNAPNAME", "s1")
    return noted


def test_the_usual_pre_hook_takes_all_disks_of_its_guests_in_one_call(calls: Path) -> None:
    subprocess.run([USUAL / "pre"], check=True)
    (taken,) = [line for line in calls.read_text().splitlines() if "snapshot-create-as" in line]
    assert taken == (
        "snapshot-create-as web s1 --memspec file=/cheap/usual/web.s1.mem,snapshot=external "
        "--diskspec vda,snapshot=external,file=/var/lib/libvirt/images/web-vda.s1.qcow2 "
        "--diskspec vdb,snapshot=external,file=/var/lib/libvirt/images/web-vdb.s1.qcow2 --atomic"
    )
    assert "--live" not in taken


def test_the_usual_post_hook_commits_and_deletes_each_overlay(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = tmp_path / "web-vda.s1.qcow2"
    overlay.touch()
    monkeypatch.setenv("VDA", str(overlay))
    subprocess.run([USUAL / "post"], check=True)
    assert calls.read_text().splitlines()[3:5] == [
        "blockcommit web vda --active --pivot",
        "snapshot-delete web s1 --metadata",
    ]
    assert not overlay.exists()
