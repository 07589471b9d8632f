from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from zvmsnap.config.settings import Config
from zvmsnap.points import definition
from zvmsnap.points.manifest import Manifest, Memory

Build = Callable[..., Manifest]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "vault" / "web" / "run"
    directory.mkdir(parents=True)
    for name in ("domain.xml", "persistent.xml", "nvram.fd", "tpm.tar"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def sealed(config: Config, directory: Path, manifest: Build) -> Manifest:
    plain = manifest()
    return msgspec.structs.replace(plain, seal=definition.seal_of(config, directory, plain))


def test_a_point_that_was_made_here(config: Config, directory: Path, sealed: Manifest) -> None:
    assert definition.is_made_here(config, directory, sealed)
    # Snapshots may have moved, and the vault, too.
    moved = directory.rename(directory.with_name("elsewhere"))
    assert definition.is_made_here(config, moved, sealed.with_snapshots(()))
    # Nor does it change whether its RAM is there: it was sent without, or that has been removed.
    assert definition.is_made_here(config, moved, sealed.without_memory("removed"))


def test_one_key_for_all(config: Config, directory: Path, sealed: Manifest) -> None:
    key = config.journal_dir / "seal.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert definition.seal_of(config, directory, sealed) == sealed.seal


@pytest.mark.parametrize("name", ["domain.xml", "persistent.xml", "nvram.fd", "tpm.tar"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_somebody_else_has_written(
    config: Config, directory: Path, sealed: Manifest, name: str, gone: bool
) -> None:
    (directory / name).unlink()
    if not gone:
        (directory / name).write_text("hostile")
    assert not definition.is_made_here(config, directory, sealed)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": Memory("memory.img", "raw", "none", 4, 4, "01")},
        {"memory": Memory("memory.pages", "raw", "none", 4, 4, "00", "memory.rest", "00")},
        {"memory": None},
        {"memory": None, "absent_memory": "01"},
        {"uuid": "c0ffee00-0000-4000-8000-000000000009"},
        {"seal": ""},
        {"seal": "0" * 64},
        {"seal": "\u00e4"},
    ],
)
def test_another_manifest(
    config: Config, directory: Path, sealed: Manifest, changes: dict[str, object]
) -> None:
    assert not definition.is_made_here(
        config, directory, msgspec.structs.replace(sealed, **changes)
    )


def test_files_cannot_change_places(config: Config, directory: Path, sealed: Manifest) -> None:
    (directory / "nvram.fd").rename(directory / "x")
    (directory / "tpm.tar").rename(directory / "nvram.fd")
    (directory / "x").rename(directory / "tpm.tar")
    assert not definition.is_made_here(config, directory, sealed)


def test_without_the_key_none_fits(config: Config, directory: Path, sealed: Manifest) -> None:
    key = config.journal_dir / "seal.key"
    key.unlink()
    assert not definition.is_made_here(config, directory, sealed)
    key.write_bytes(b"short")
    assert not definition.is_made_here(config, directory, sealed)
    # A new one is made, by which older points are from elsewhere.
    assert definition.seal_of(config, directory, sealed) != sealed.seal
    assert len(key.read_bytes()) == 32


def test_a_page_image_is_known_by_both_files(
    config: Config, directory: Path, manifest: Build
) -> None:
    memory = Memory("memory.pages", "raw", "none", 4, 4, "aa", "memory.rest", "bb")
    made = manifest(memory=memory)
    made = msgspec.structs.replace(made, seal=definition.seal_of(config, directory, made))
    assert definition.is_made_here(config, directory, made)
    assert definition.is_made_here(config, directory, made.without_memory("removed"))
    for changes in ({"sha256": "ab"}, {"rest_sha256": "aa"}, {"sha256": "bb", "rest_sha256": "aa"}):
        other = msgspec.structs.replace(memory, **changes)
        assert not definition.is_made_here(
            config, directory, msgspec.structs.replace(made, memory=other)
        )
