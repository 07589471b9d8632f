import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guestfs_module import FakeMachine
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.files import ending
from zvmsnap.files.record import View, Views
from zvmsnap.point_disks import temporary
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount


def test_who_writes_to_its_overlays_is_killed(
    config: Config, view: View, machine: FakeMachine
) -> None:
    """libguestfs' QEMU, whose own process was killed; who only reads there is not."""
    inside = Path(view.work) / "libguestfsX"
    inside.mkdir(parents=True)
    (inside / "overlay1.qcow2").touch()
    program = (
        "import sys, time; f = open(sys.argv[1], sys.argv[2]); print(flush=True); time.sleep(60)"
    )

    def start(mode: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", program, str(inside / "overlay1.qcow2"), mode]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline()
        return process

    writer, reader = start("r+"), start("r")
    # As init does, for a process whose parent has died.
    threading.Thread(target=writer.wait, daemon=True).start()
    Views(config.journal_dir).write(view)
    try:
        ending.end(config, view)
        assert writer.wait(10) == -9 and reader.poll() is None
        assert not Path(view.work).exists() and Views(config.journal_dir).all() == ([], [])
    finally:
        for each in (writer, reader):
            each.kill()


def test_what_cannot_be_ended_is_told_and_stays(
    config: Config, view: View, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = msgspec.structs.replace(view, owner=Process.none())
    Views(config.journal_dir).write(dead)

    def refuse(_names: object, _key: str) -> None:
        raise FilesImpossible("tank/x: busy")

    monkeypatch.setattr(temporary, "remove", refuse)
    assert ending.tidy(config) == ["the view of web@x: tank/x: busy"]
    assert Views(config.journal_dir).all() == ([dead], [])
    monkeypatch.undo()
    assert ending.tidy(config) == [] and Views(config.journal_dir).all() == ([], [])


def test_a_damaged_note_is_told(config: Config) -> None:
    path = config.journal_dir / "views" / "0123abcd.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    (why,) = ending.tidy(config)
    assert str(path) in why and path.exists()


def test_only_a_view_is_unmounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have mounted another file system at the same place since."""
    table = [
        Mount(1, 1, "/", "/", "", "ext4"),
        Mount(2, 1, "/", "/mnt", "", "fuse"),
        Mount(3, 1, "/", "/srv", "tank/srv", "zfs"),
    ]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    assert [ending.is_mounted(path) for path in ("/mnt", "/srv", "/")] == [True, False, False]


def test_a_failed_unmount_says_why(tmp_path: Path) -> None:
    with pytest.raises(FilesImpossible, match="not mounted"):
        ending.unmount(str(tmp_path))
