from tests.fakes.backup_scene import Scene
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
    assert list(problems(scene.directory, backup)) == []
    for name in ("vda.qcow2", "memory.img", "domain.xml"):
        flip(str(backup.directory / name), (backup.directory / name).stat().st_size - 5)
        assert list(problems(scene.directory, backup)) == [f"{name} does not match its checksum"]
        flip(str(backup.directory / name), (backup.directory / name).stat().st_size - 5)
    (backup.directory / "nvram.fd").unlink()
    assert list(problems(scene.directory, backup)) == [
        "nvram.fd cannot be read: No such file or directory"
    ]


def test_what_it_depends_on(scene: Scene) -> None:
    first = scene.back_up(scene.point("one"))
    second = scene.back_up(scene.point("two"))
    assert list(problems(scene.directory, second)) == []
    first.directory.rename(scene.directory.path / "away")
    (problem,) = problems(scene.directory, second)
    assert problem == f"{first.directory}: has no manifest.json, or is not there"
    # Another backup of the same name.
    scene.back_up(scene.point("three"), level="full").directory.rename(first.directory)
    (problem,) = problems(scene.directory, second)
    assert problem.endswith(f"depends on {first.name}, and what is there is another backup")
