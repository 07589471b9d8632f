import pytest

from tests.fakes.backup_scene import Scene
from zvmsnap.archive.consolidate import consolidate
from zvmsnap.archive.directory import StoredBackup, differs
from zvmsnap.archive.manifest import StoredFile
from zvmsnap.archive.verify import problems


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte(scene: Scene) -> None:
    scene.write(0, b"x" * 100_000)
    backup = scene.back_up(scene.point("one", memory=True))
    assert problems(scene.directory, backup) == []
    for name in ("vda.qcow2", "memory.img", "domain.xml"):
        flip(str(backup.directory / name), (backup.directory / name).stat().st_size - 5)
        assert problems(scene.directory, backup) == [f"{name} does not match its checksum"]
        flip(str(backup.directory / name), (backup.directory / name).stat().st_size - 5)
    (backup.directory / "nvram.fd").unlink()
    assert problems(scene.directory, backup) == [
        "nvram.fd cannot be read: No such file or directory"
    ]


def test_what_it_depends_on(scene: Scene) -> None:
    first = scene.back_up(scene.point("one"))
    second = scene.back_up(scene.point("two"))
    assert problems(scene.directory, second) == []
    first.directory.rename(scene.directory.path / "away")
    (problem,) = problems(scene.directory, second)
    assert problem == f"{first.directory}: has no manifest.json, or is not there"
    # Another backup of the same name.
    scene.back_up(scene.point("three"), level="full").directory.rename(first.directory)
    (problem,) = problems(scene.directory, second)
    assert problem.endswith(f"depends on {first.name}, and what is there is another backup")


def test_consolidated_while_it_is_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("one", "two"):
        scene.write(0, name.encode() * 50_000)
        made.append(scene.back_up(scene.point(name)))
    first, second = made
    looked_at: list[str] = []

    def differing(backup: StoredBackup, file: StoredFile) -> str:
        looked_at.append(file.name)
        if len(looked_at) == 1:
            consolidate(scene.directory, second.manifest.uuid, 1)
        return differs(backup, file)

    monkeypatch.setattr("zvmsnap.archive.verify.differs", differing)
    assert problems(scene.directory, second) == []
    assert len(looked_at) > len(second.manifest.files)  # what is whole now was read as well
    assert problems(scene.directory, first) == []  # it is gone
    flip(str(second.directory / "vda.qcow2"), 70_000)
    assert problems(scene.directory, second) == ["vda.qcow2 does not match its checksum"]
