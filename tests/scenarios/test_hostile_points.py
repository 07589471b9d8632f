"""A point that somebody else has made, hostile in any field, leads nowhere outside.

It is restored and cloned as far as that goes, with whatever its manifest, its definitions, its
firmware and its datasets say. Beside our directories is a canary tree, to which they lead.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.restore_case import put_back
from tests.fakes.restore_scene import DATASET, Scene, set_scene
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.points import definition, vault
from zvmsnap.points.manifest import DOMAIN_XML, MANIFEST, NVRAM, PERSISTENT_XML, TPM, Manifest
from zvmsnap.points.point import read_point
from zvmsnap.restore.plan import RestoreOptions
from zvmsnap.virt import tpm_state

Build = Callable[..., Manifest]

PATHS = (
    "{canary}/file",
    "{canary}/new",
    "{canary}/folder",
    "{inside}/../../../canary/file",
    "{inside}/link",
    "{inside}/folder/file",
    "{nvram}/link",
    "{nvram}/../canary/file",
    "{nvram}/web_VARS.fd",
    "../../canary/file",
    "..",
    "",
    "/",
)
ELEMENTS = (
    "<os><nvram>{path}</nvram></os>",
    "<os><nvram type='file'><source file='{path}'/></nvram></os>",
    "<os><nvram type='block'><source dev='{path}'/></nvram></os>",
    "<os><loader>{path}</loader></os>",
    "<os><kernel>{path}</kernel></os>",
    "<devices><tpm><backend type='emulator'><source type='dir' path='{path}'/></backend></tpm>",
    "<devices><tpm><backend type='emulator'><source type='file' path='{path}'/></backend></tpm>",
    "<devices><serial type='file'><source path='{path}'/></serial>",
    "<devices><filesystem type='mount'><source dir='{path}'/><target dir='x'/></filesystem>",
    "<devices><disk type='file' device='disk'><source file='{path}'/><target dev='vdb'/></disk>",
    "<devices><disk type='file' device='cdrom'><source file='{path}'/><target dev='sda'/>"
    "<readonly/></disk>",
    "<devices><emulator>{path}</emulator>",
)
FIELDS: tuple[tuple[str | int, ...], ...] = (
    *(("domain",), ("uuid",), ("run",), ("capture",), ("seal",)),
    *(("snapshots", 0, key) for key in ("dataset", "name", "current_dataset", "guid")),
    *(("disks", 0, key) for key in ("target", "type", "format", "source", "dataset", "path")),
    *(("memory", key) for key in ("file", "compression", "sha256")),
)


class World:
    """A host with a guest and a point of it, and the canary tree."""

    def __init__(self, root: Path, manifest: Build, patch: pytest.MonkeyPatch) -> None:
        self.canary = root / "canary"
        (self.canary / "folder").mkdir(parents=True)
        for path in (self.canary / "file", self.canary / "folder" / "tpm2-00.permall"):
            path.write_bytes(b"of the host")
        self.nvram = root / "nvram"
        self.nvram.mkdir()
        (self.nvram / "link").symlink_to(self.canary / "file")
        patch.setattr(definition, "NVRAM_DIR", self.nvram)
        patch.setattr(tpm_state, "SWTPM", root / "swtpm")
        (root / "swtpm").mkdir()
        keys = {key: str(root / "ours" / key) for key in ("staging", "vault", "journal", "locks")}
        config = Config(**keys)  # type: ignore[arg-type]
        self.scene = set_scene(config, root / "pools", manifest, patch)
        self.scene.made_here = False
        self.inside = Path(self.scene.world.disk_of(DATASET)).parent
        self.inside.mkdir(parents=True, exist_ok=True)
        (self.inside / "link").symlink_to(self.canary / "file")
        (self.inside / "folder").symlink_to(self.canary)
        self.directory = self.scene.point().directory
        archived = tpm_state._packed({"tpm2-00.permall": tpm_state._File(b"hostile", 0o600, 0, 0)})
        (self.directory / TPM).write_bytes(archived)
        (self.directory / NVRAM).write_bytes(b"hostile")

    def _filled(self, text: str) -> str:
        for name in ("canary", "inside", "nvram"):
            text = text.replace(f"{{{name}}}", str(getattr(self, name)))
        return text

    def spoil_definition(self, element: str, path: str) -> None:
        element = element.format(path=self._filled(path))
        for name in (DOMAIN_XML, PERSISTENT_XML):
            text = (self.directory / name).read_text()
            # Before the devices, or as the first of them.
            whole = element if element.startswith("<devices>") else f"{element}<devices>"
            (self.directory / name).write_text(text.replace("<devices>", whole, 1))

    def spoil_manifest(self, field: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, str):
            value = self._filled(value)
        document = json.loads((self.directory / MANIFEST).read_bytes())
        at = document
        for key in field[:-1]:
            at = at[key]
        at[field[-1]] = value
        (self.directory / MANIFEST).write_text(json.dumps(document))

    def link(self, name: str) -> None:
        """The sender can write into the vault, too."""
        (self.directory / name).unlink(missing_ok=True)
        (self.directory / name).symlink_to(self.canary / "file")

    def seen(self) -> list[tuple[object, ...]]:
        """All of the canary tree: any change of a file changes its ctime, or its name."""
        statuses = [(str(path), path.lstat()) for path in sorted(self.canary.rglob("*"))]
        return [(path, each.st_ino, each.st_mode, each.st_ctime_ns) for path, each in statuses]


@contextmanager
def world(manifest: Build) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        yield World(Path(root).resolve(), manifest, patch)


def restored(scene: Scene, directory: Path) -> None:
    put_back(scene, read_point(directory), RestoreOptions(cold=True))


def cloned(scene: Scene, directory: Path) -> None:
    point, options = read_point(directory), CloneOptions("w2", cold=True)
    operation = plan_clone(scene.config, scene.host, point, options)
    CloneCreation(scene.config, scene.host, operation).run()


def listed(scene: Scene, directory: Path) -> None:
    vault.read(scene.config)


# What an operator does with a point; each may refuse, in one line.
USES = (restored, cloned, listed)


def used(known: World, use: Callable[[Scene, Path], None]) -> None:
    before = known.seen()
    with suppress(OSError):
        try:
            use(known.scene, known.directory)
        except ZvmsnapError as error:
            assert len(str(error).splitlines()) == 1, error
    assert known.seen() == before
    assert not (known.canary / "new").exists()


SOME = settings(
    max_examples=int(os.environ.get("ZVMSNAP_TEST_HOSTILE_POINTS", "60")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SOME
@given(st.sampled_from(ELEMENTS), st.sampled_from(PATHS), st.sampled_from(USES))
def test_definitions(
    manifest: Build, element: str, path: str, use: Callable[[Scene, Path], None]
) -> None:
    with world(manifest) as known:
        known.spoil_definition(element, path)
        used(known, use)


@SOME
@given(
    st.lists(
        st.tuples(
            st.sampled_from(FIELDS),
            st.one_of(st.sampled_from(PATHS), st.integers(), st.text(max_size=8), st.none()),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(USES),
)
def test_manifests(
    manifest: Build,
    changes: list[tuple[tuple[str | int, ...], Any]],
    use: Callable[[Scene, Path], None],
) -> None:
    with world(manifest) as known:
        for field, value in changes:
            known.spoil_manifest(field, value)
        used(known, use)


@pytest.mark.parametrize("name", [DOMAIN_XML, PERSISTENT_XML, NVRAM, TPM, MANIFEST])
@pytest.mark.parametrize("use", USES)
def test_links_in_the_vault(manifest: Build, name: str, use: Callable[[Scene, Path], None]) -> None:
    with world(manifest) as known:
        own = f"<os><nvram>{known.nvram}/web_VARS.fd</nvram></os>"
        known.spoil_definition(own, "")
        known.link(name)
        used(known, use)
        # Nor is the file of the host read into what the guest gets.
        assert name != NVRAM or not list(known.nvram.glob("*_VARS.fd"))


def test_a_whole_one_is_restored_and_cloned(manifest: Build) -> None:
    """Or all cases above would be refused for something else."""
    for use in USES:
        with world(manifest) as known:
            own = f"<os><nvram>{known.nvram}/web_VARS.fd</nvram></os>"
            known.spoil_definition(own, "")
            (known.directory / TPM).unlink()
            use(known.scene, known.directory)
            assert use is listed or list(known.nvram.glob("*_VARS.fd"))


def test_the_canary_is_looked_at(manifest: Build) -> None:
    def trample(scene: Scene, directory: Path) -> None:
        (directory.parents[3] / "canary" / "file").write_text("trampled")

    with world(manifest) as known, pytest.raises(AssertionError):
        used(known, trample)
