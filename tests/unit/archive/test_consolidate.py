"""Old backups go; none that is kept is ever lost, wherever the work ends."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.fakes.backup_scene import Scene
from tests.fakes.images import run_qemu_img
from zvmsnap.archive import consolidate as module
from zvmsnap.archive.consolidate import consolidate, guest_named
from zvmsnap.archive.directory import BackupDirectory, StoredBackup, described
from zvmsnap.archive.manifest import MANIFEST, Backup, BackupDisk, Level, Way
from zvmsnap.archive.verify import problems
from zvmsnap.common import json_file
from zvmsnap.common.errors import BackupDamaged, BackupImpossible, BackupInvalid
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import qemu_img
from zvmsnap.points.manifest import HostDescription

UUID = "c0ffee00-0000-4000-8000-000000000001"
LENGTH = 1 << 20


class Killed(BaseException):
    """The process dies."""


class Chain:
    """Backups of a guest, made by qemu-img alone, and what each disk holds."""

    def __init__(self, scene: Scene, count: int, disks: tuple[str, ...] = ("vda", "vdb")) -> None:
        self.scene = scene
        self.directory = scene.directory
        self.content: dict[str, dict[str, bytes]] = {}
        self.disks = disks
        for number in range(1, count + 1):
            self.add(number)

    def add(self, number: int, parent: str | None = None, level: Level = Level.INC) -> None:
        """One that is on the last one, or on that one."""
        names = list(self.content)
        parent = parent if parent is not None else (names[-1] if names else "")
        level = level if parent else Level.FULL
        made = self.directory.make(f"{number:032x}")
        contents = {}
        for target in self.disks:
            image = made / f"{target}.qcow2"
            below = f"../{parent}/{target}.qcow2"
            on = ("-b", below, "-F", "qcow2") if parent else ()
            size = () if parent else (str(LENGTH),)
            run_qemu_img("create", "-q", "-f", "qcow2", *on, image, *size)
            data = bytearray(self.content[parent][target] if parent else bytes(LENGTH))
            at = number * 4096 % LENGTH
            if number < 10 or number % 20 == 0:
                data[at : at + 512] = bytes([number % 255 + 1]) * 512
                self._write(image, at, number % 255 + 1)
            contents[target] = bytes(data)
        ids = {name: self.directory.backup(name).manifest.id for name in names}
        backup = Backup(
            id=f"{number:032x}",
            number=number,
            domain="web",
            uuid=UUID,
            created=f"2026-11-20T{number // 60:02}:{number % 60:02}:00+00:00",
            level=level,
            parent=parent,
            parent_id=ids.get(parent, ""),
            way=Way.SNAPSHOT,
            consistency=ConsistencyLevel.CRASH,
            disks=tuple(
                BackupDisk(target, f"{target}.qcow2", LENGTH, bool(parent)) for target in self.disks
            ),
            files=tuple(described(made / f"{target}.qcow2") for target in self.disks),
            host=HostDescription("", "", "", "", "", "", "", ""),
        )
        self.content[self.directory.publish(made, backup).name] = contents

    def _write(self, image: object, at: int, byte: int) -> None:
        command = f"write -q -P {byte} {at} 512"
        subprocess.run(["qemu-io", "-c", command, str(image)], check=True, capture_output=True)

    def backups(self) -> list[StoredBackup]:
        return self.directory.of_guest(UUID)

    def assert_whole(self, *names: str) -> None:
        """These are there, as good as they were."""
        there = {each.name: each for each in self.backups()}
        for name in names:
            assert problems(self.directory, there[name]) == []
            for target in self.disks:
                assert self.scene.content(there[name], target) == self.content[name][target]


def test_the_oldest_kept_becomes_whole(scene: Scene) -> None:
    made = Chain(scene, 5)
    names = list(made.content)
    assert consolidate(scene.directory, UUID, 2) == ([names[3]], names[:3])
    assert [each.name for each in made.backups()] == names[3:]
    assert [each.manifest.level for each in made.backups()] == ["full", "inc"]
    made.assert_whole(*names[3:])
    assert consolidate(scene.directory, UUID, 2) == ([], [])
    assert consolidate(scene.directory, UUID, 9) == ([], [])
    assert {path.name for path in (scene.directory.path / names[3]).iterdir()} == {
        *("manifest.json", "vda.qcow2", "vdb.qcow2")
    }


def test_differences_to_the_same_full_one(scene: Scene) -> None:
    made = Chain(scene, 1, ("vda",))
    (full,) = made.content
    for number in (2, 3, 4):
        made.add(number, full, Level.DIFF)
    names = list(made.content)
    assert consolidate(scene.directory, UUID, 2) == (names[2:], names[:2])
    made.assert_whole(*names[2:])


def steps(patch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Let the process die before that change of the outside world."""
    seen: list[str] = []

    def dying(what: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(seen) == die_at:
                raise Killed
            seen.append(what)
            return do(*arguments, **options)

        return call

    patch.setattr(qemu_img, "convert", dying("convert", qemu_img.convert))
    patch.setattr(json_file, "write", dying("manifest", json_file.write))
    patch.setattr(os, "rename", dying("rename", os.rename))
    patch.setattr(os, "unlink", dying("unlink", os.unlink))
    patch.setattr(os, "rmdir", dying("rmdir", os.rmdir))
    # After a kill nobody cleans up.
    patch.setattr(module, "suppress", lambda *_: Dead() if len(seen) == die_at else real(*_))
    return seen


real = contextlib.suppress


class Dead:
    """In place of `suppress` once the process is dead."""

    def __enter__(self) -> None:
        raise Killed

    def __exit__(self, *_exception: object) -> None:
        return


@pytest.mark.parametrize("die_at", range(18))
def test_killed_at_each_step(scene: Scene, monkeypatch: pytest.MonkeyPatch, die_at: int) -> None:
    made = Chain(scene, 4)
    names = list(made.content)
    with monkeypatch.context() as patch:
        steps(patch, die_at)
        with pytest.raises(Killed):
            consolidate(scene.directory, UUID, 2)
    made.assert_whole(*names[2:])
    there = [each.name for each in made.backups()]
    # Those that go are there with what they are on, or not at all.
    made.assert_whole(*there)
    consolidate(scene.directory, UUID, 2)
    assert [each.name for each in made.backups()] == names[2:]
    made.assert_whole(*names[2:])
    assert not [path for path in scene.directory.path.rglob("*") if path.name.startswith(".")]


def test_a_copy_stays_and_does_not_count(scene: Scene) -> None:
    made = Chain(scene, 3, ("vda",))
    names = list(made.content)
    first = made.backups()[0]
    json_file.write(
        first.directory / MANIFEST, msgspec.structs.replace(first.manifest, level=Level.COPY)
    )
    assert consolidate(scene.directory, UUID, 1) == ([names[2]], [names[1]])
    made.assert_whole(names[2])
    assert [each.name for each in made.backups()] == [names[0], names[2]]


def test_damage_is_not_made_whole(scene: Scene) -> None:
    made = Chain(scene, 3, ("vda",))
    names = list(made.content)
    image = scene.directory.path / names[0] / "vda.qcow2"
    data = bytearray(image.read_bytes())
    data[-10] ^= 1
    image.write_bytes(data)
    with pytest.raises(BackupDamaged, match=r"vda.qcow2 does not match its checksum"):
        consolidate(scene.directory, UUID, 1)
    assert [each.name for each in made.backups()] == names


def test_nothing_goes_that_somebody_may_need(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Chain(scene, 3, ("vda",))
    names = list(made.content)
    monkeypatch.setattr(qemu_img, "needed_bytes", lambda _image: 1 << 60)
    with pytest.raises(BackupImpossible, match="nothing is removed"):
        consolidate(scene.directory, UUID, 1)
    (scene.directory.path / names[1] / MANIFEST).write_text("{")
    with pytest.raises(BackupDamaged, match="nothing is removed, as it may need any of the rest"):
        consolidate(scene.directory, UUID, 1)
    assert {path.name for path in scene.directory.path.iterdir()} == set(names)


def test_a_long_chain(scene: Scene) -> None:
    made = Chain(scene, 40, ("vda",))
    names = list(made.content)
    made.assert_whole(names[-1])
    whole, gone = consolidate(scene.directory, UUID, 1)
    assert (whole, gone) == (names[-1:], names[:-1])
    made.assert_whole(names[-1])


def test_which_guest(scene: Scene) -> None:
    Chain(scene, 1, ("vda",))
    assert guest_named(scene.directory, "web") == guest_named(scene.directory, UUID) == UUID
    with pytest.raises(BackupInvalid, match="db: has no backup in"):
        guest_named(BackupDirectory(scene.directory.path), "db")
