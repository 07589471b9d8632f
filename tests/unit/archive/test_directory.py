"""What lies in a directory of backups, in which others work at the same time."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.backup_scene import manifests_read
from zvmsnap.archive import directory as module
from zvmsnap.archive.directory import BackupDirectory, StoredBackup, discard
from zvmsnap.archive.manifest import MANIFEST, Backup, BackupDisk, Level, StoredFile, Way
from zvmsnap.common import json_file
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.manifest import HostDescription

WEB = "c0ffee00-0000-4000-8000-000000000001"
DB = "c0ffee00-0000-4000-8000-000000000002"


@pytest.fixture
def there(tmp_path: Path) -> BackupDirectory:
    return BackupDirectory(tmp_path)


def publish(there: BackupDirectory, number: int, uuid: str = WEB, **changes: Any) -> StoredBackup:
    key = f"{uuid[-1]}{number:031x}"
    backup = Backup(
        id=key,
        number=number,
        domain="web",
        uuid=uuid,
        created=f"2026-11-20T03:00:{number:02}+00:00",
        level=Level.FULL,
        way=Way.SNAPSHOT,
        consistency=ConsistencyLevel.CRASH,
        disks=(BackupDisk("vda", "vda.qcow2", 1 << 20, False),),
        files=(StoredFile("vda.qcow2", 3, "0" * 64),),
        host=HostDescription("", "", "", "", "", "", "", ""),
    )
    made = there.make(key)
    (made / "vda.qcow2").write_bytes(b"QFI")
    return there.publish(made, msgspec.structs.replace(backup, **changes))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return manifests_read(monkeypatch)


def test_each_manifest_is_read_once(there: BackupDirectory, read: list[str]) -> None:
    own = [publish(there, number) for number in (1, 3)]
    other = publish(there, 2, DB)
    for _ in range(3):
        assert there.of_guest(WEB) == own
    assert there.of_guest(DB) == [other]
    assert there.read() == ([*own, other], [])
    assert there.chain(own[0]) == [own[0]] and there.backup(other.name) == other
    assert sorted(read) == [own[0].name, other.name, own[1].name]
    # Another one has appeared, and one is gone.
    own.append(publish(there, 4))
    there.remove(own.pop(0))
    assert there.of_guest(WEB) == own
    assert read[3:] == [own[-1].name]


def test_what_others_have_changed_is_seen(there: BackupDirectory, read: list[str]) -> None:
    made = publish(there, 1)
    assert there.of_guest(WEB) == [made]
    changed = msgspec.structs.replace(made.manifest, point="web@other")
    json_file.write(made.directory / MANIFEST, changed)
    assert there.of_guest(WEB) == [StoredBackup(made.directory, changed)]
    assert there.backup(made.name).manifest == changed
    # Another backup, of another guest, is in its place.
    shutil.rmtree(made.directory)
    other = publish(there, 1, DB)
    assert other.name == made.name
    assert (there.of_guest(WEB), there.of_guest(DB)) == ([], [other])
    assert read == [made.name] * 3
    (other.directory / MANIFEST).write_text("{")
    assert there.of_guest(DB) == [] and len(there.read()[1]) == 1


def test_of_others_nothing_is_asked_again(
    there: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands, on a server."""
    own, _ = publish(there, 1), publish(there, 2, DB)
    there.of_guest(WEB)
    asked: list[str] = []
    do = module._stamp

    def noting(path: Path) -> tuple[int, ...]:
        asked.append(path.parent.name)
        return do(path)

    monkeypatch.setattr(module, "_stamp", noting)
    there.of_guest(WEB)
    assert asked == [own.name]


def test_one_that_is_removed_meanwhile_is_not_damaged(
    there: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = publish(there, 1), publish(there, 2, DB)
    do = module.read_backup

    def meanwhile(path: Path) -> StoredBackup:
        if path == goes.directory and path.exists():
            BackupDirectory(there.path).remove(goes)
        return do(path)

    monkeypatch.setattr(module, "read_backup", meanwhile)
    assert there.read() == ([stays], [])


def test_two_guests_of_one_name_in_the_same_second(
    there: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the same name free; none is lost."""
    won: list[StoredBackup] = []
    do = os.rename

    def rename(old: Any, new: Any) -> None:
        if not won:
            monkeypatch.setattr(os, "rename", do)
            won.append(publish(there, 1, DB))
        do(old, new)

    monkeypatch.setattr(os, "rename", rename)
    mine = publish(there, 1)
    assert [won[0].name, mine.name] == ["web@2026-11-20T030001Z", "web@2026-11-20T030001Z.2"]
    assert (there.of_guest(DB), there.of_guest(WEB)) == (won, [mine])


@pytest.mark.parametrize("all_of_it", [True, False])
def test_two_remove_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_of_it: bool
) -> None:
    """As two that find what a crash has left."""
    left = tmp_path / ".removing-web@2026-11-20T030001Z"
    left.mkdir()
    for name in ("vda.qcow2", "vdb.qcow2"):
        (left / name).write_bytes(b"")
    do: Callable[[Path], None] = shutil.rmtree

    def other_is_first(path: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", do)
        if all_of_it:
            do(path)
        else:
            (path / "vda.qcow2").unlink()
        raise FileNotFoundError(2, "No such file or directory", str(path / "vda.qcow2"))

    monkeypatch.setattr(shutil, "rmtree", other_is_first)
    discard(left)
    assert list(tmp_path.iterdir()) == []
    discard(left)
