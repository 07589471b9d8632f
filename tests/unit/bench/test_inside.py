"""What runs in the lab: when a guest has gone to another time, page images, the usual hooks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.inside import measured, page_images
from bench.inside.next_count import Log

from tests.fakes.images import libvirt_image
from zvmsnap.common import json_file
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import read_point

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


def test_seconds_of_the_cpu_are_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = "sum(range(3_000_000))"
    commands = {
        "busy": {"argv": [sys.executable, "-c", busy]},
        "asleep": {"argv": ["sleep", "0.2"], "statuses": [3]},
    }
    asked = json.dumps({"repeats": 2, "warm": True, "commands": commands})
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "measured.py"))
    measured.main()
    said = json.loads(capsys.readouterr().out)
    assert said["notes"] == ["asleep: exit status 0: "]
    figures = said["figures"]
    assert [len(figures[each]["cpu_s"]) for each in commands] == [2, 2]
    assert max(figures["asleep"]["cpu_s"]) < 0.1 < min(figures["asleep"]["took_s"])
    assert min(figures["busy"]["cpu_s"]) > max(figures["asleep"]["cpu_s"])


def test_an_image_is_stored_as_publishing_does_and_rebuilt(
    tmp_path: Path, manifest: Callable[..., Manifest]
) -> None:
    image, model = tmp_path / "memory.img", tmp_path / "plain" / "web" / "p1"
    model.mkdir(parents=True)
    image.write_bytes(libvirt_image("<domain/>", b"all that is in its RAM"))
    (model / "manifest.json").write_bytes(json_file.encoded(manifest()))
    (model / "domain.xml").write_text("<domain/>")
    took = page_images.store(str(image), str(model), str(tmp_path / "vault"))
    point = tmp_path / "vault" / "web" / "p1"
    stored = read_point(point).manifest.memory
    assert stored and stored.is_paged and stored.image_bytes == image.stat().st_size
    assert (point / "domain.xml").read_text() == "<domain/>"
    back = page_images.rebuild(str(point), str(tmp_path / "back.img"))
    assert b"all that is in its RAM" in (tmp_path / "back.img").read_bytes()
    assert took.keys() == back.keys() == {"took_s", "cpu_s", "peak_mib"}
    image.write_bytes(b"no image of libvirt")
    with pytest.raises(SystemExit, match="was not taken apart: "):
        page_images.store(str(image), str(model), str(tmp_path / "another"))


def test_what_changed_is_counted_in_pieces_of_each_size(tmp_path: Path) -> None:
    mib = 1 << 20
    old, new = bytearray(2 * mib), bytearray(2 * mib)
    old[:mib] = new[:mib] = bytes([7]) * mib
    new[5 * 4096] = 1
    new[mib] = old[mib + 4096] = 1  # the second became zeros
    for name, content in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(content)
    said = page_images.changed(str(tmp_path / "old"), str(tmp_path / "new"))
    assert said["4 KiB"] == {"used_mib": 1 + 4 / 1024, "changed_mib": 3 * 4 / 1024}
    assert said["128 KiB"] == {"used_mib": 1.125, "changed_mib": 0.25}


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
