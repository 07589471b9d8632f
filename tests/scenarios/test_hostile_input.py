"""Whatever lies in our directories, or is said by whoever calls: one line, and nothing beside them.

10 000 cases. Each is run beside a canary tree, to which hostile paths and symlinks lead.
"""

import copy
import dataclasses
import io
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.cli import points
from zvmsnap.common import signals
from zvmsnap.common.errors import QemuImgFailed, ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs, qemu_img
from zvmsnap.hooks import main
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points.manifest import Manifest
from zvmsnap.recovery import recover
from zvmsnap.retention import prune
from zvmsnap.zfs import mounts, types, zfs

T = "autosnap_2026-11-20_03:00:00"
CAPTURE = f"{UUID}.00000001"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
# {canary} is put in place when the case is run.
LEADING_OUT = (
    "..",
    ".",
    "/",
    "",
    "../canary",
    "../../canary",
    "{canary}",
    "{canary}/file",
    f"{{canary}}/{CAPTURE}",
    f"{{canary}}/{CAPTURE}/vda.zvmsnap.qcow2",
    f"../{CAPTURE}",
    "tank/../../canary",
    "a\0b",
    "a\nb",
    "-r",
    "--help",
    "@",
    "a@b@c",
    "%2E%2E",
    "json:{}",
    "\u202eabc",
    "x" * 300,
)
HUGE: tuple[Any, ...] = (
    "y" * 200_000,
    10**400,
    -(10**30),
    1e308,
    -1e308,
    [[]] * 1000,
    2**64,
    -1,
    0,
)
HOSTILE = st.sampled_from(LEADING_OUT) | st.sampled_from(HUGE) | JSON


class Told(logging.Handler):
    """Formats each line, and lets nothing pass that cannot be."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        assert "Traceback" not in line


class AnyZfs(FakeZfs):
    """Has every snapshot that it is asked for, if it can be asked for in a command line at all."""

    def snapshots(self, names: Any) -> types.SnapshotListing:
        asked = list(names)
        for name in asked:
            assert "\0" not in name and not name.startswith("-"), name
        self.present = dict.fromkeys(asked, 5)
        return super().snapshots(asked)


@dataclass
class World:
    """Our directories, the canary tree beside them, and a host with one guest."""

    root: Path
    config: Config
    canary: Path
    host: FakeHost
    untouched: list[tuple[object, ...]] = dataclasses.field(default_factory=list)

    def reset(self) -> None:
        """Everything as on the first day."""
        for name in OURS:
            directory = self.root / "ours" / name
            directory.mkdir(exist_ok=True)
            for each in directory.iterdir():
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                else:
                    each.unlink()
        base = self.canary / "vda.raw"
        self.host.known[:] = [FakeGuest("web", UUID, vda=base)]

    def outside(self) -> list[tuple[object, ...]]:
        """All that is not ours: whatever changes one of it changes its ctime, or its name."""
        found: list[tuple[object, ...]] = []
        pending = [str(self.root), str(self.root / "ours"), str(self.canary)]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.name in OURS or entry.path in (
                        str(self.root / "ours"),
                        str(self.canary),
                    ):
                        continue
                    seen = entry.stat(follow_symlinks=False)
                    found.append((entry.path, seen.st_ino, seen.st_mode, seen.st_ctime_ns))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        return sorted(found)

    def beside(self, do: Callable[[], object]) -> None:
        """Do it. No exception but ours and OSError, and nothing changes outside."""
        with redirect_stdout(io.StringIO()):
            try:
                do()
            except (ZvmsnapError, OSError, typer.Exit) as error:
                assert str(error) or isinstance(error, typer.Exit)
        assert self.outside() == self.untouched

    def filled(self, value: Any) -> Any:
        """With the canary's path in its place."""
        if isinstance(value, str):
            return value.replace("{canary}", str(self.canary))
        if isinstance(value, list):
            return [self.filled(each) for each in value]
        if isinstance(value, dict):
            return {key: self.filled(each) for key, each in value.items()}
        return value


OURS = ("staging", "vault", "journal", "locks")


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory in RAM where there is one: 10 000 times it is emptied."""
    shared = Path("/dev/shm")
    in_ram = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=in_ram) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def world(memory: Path) -> Iterator[World]:
    root = memory / "hostile"
    root.mkdir()
    canary = root / "canary"
    for folder in (
        canary,
        canary / "web",
        canary / T,
        canary / CAPTURE,
        canary / CAPTURE / "point",
    ):
        folder.mkdir()
        for name in (
            "file",
            "vda.zvmsnap.qcow2",
            "memory.img",
            "domain.xml",
            "manifest.json",
            f"{UUID}.json",
        ):
            (folder / name).write_text("<canary/>")
    (canary / "vda.raw").write_bytes(b"disk")
    keys = {key: str(root / "ours" / key) for key in OURS}
    (root / "ours").mkdir()
    (root / "config.toml").write_text("".join(f"{key} = '{keys[key]}'\n" for key in OURS))
    made = World(root, Config(**keys), canary, FakeHost())  # type: ignore[arg-type]
    made.reset()
    made.untouched = made.outside()
    known = AnyZfs()
    logger = logging.getLogger("zvmsnap")
    told = Told()
    handlers, propagate = logger.handlers[:], logger.propagate

    def no_images(*_arguments: str) -> str:
        raise QemuImgFailed("no")

    with pytest.MonkeyPatch.context() as patch:
        made.host.install(patch)
        patch.setattr(zfs, "snapshots", known.snapshots)
        patch.setattr(zfs, "all_snapshots", lambda: types.SnapshotListing({}, frozenset({"tank"})))
        patch.setattr(zfs, "datasets", lambda: {"tank/web": types.Dataset("tank/web", "fs", False)})
        patch.setattr(mounts, "read_table", list)
        patch.setattr(qemu_img, "_run", no_images)
        patch.setattr(jobs, "_LOOK_EVERY_S", 0.0)
        patch.setattr(signals, "finish_before_dying", lambda: None)
        patch.setattr(signals, "cancelled_with_parent", lambda parent: threading.Event())
        patch.setenv("ZVMSNAP_CONFIG", str(root / "config.toml"))
        logger.handlers[:], logger.propagate = [told], False
        yield made
        logger.handlers[:], logger.propagate = handlers, propagate


def cases(number: int) -> settings:
    quick = (HealthCheck.too_slow, HealthCheck.data_too_large)
    return settings(max_examples=number, deadline=None, suppress_health_check=quick, database=None)


WORDS = st.sampled_from(
    (*LEADING_OUT, "tank/web", "tank/web", f"{T}_hourly", f"tank/web@{T}_hourly", "z" * 50_000)
) | st.text(max_size=20)
VALUES = st.lists(WORDS, max_size=4).map(",".join)
VARIABLES = (
    "SANOID_TARGET",
    "SANOID_TARGETS",
    "SANOID_SNAPNAME",
    "SANOID_SNAPNAMES",
    "SANOID_PRE_FAILURE",
    "SANOID_SCRIPT",
    "SANOID_TYPES",
)


@cases(4000)
@given(
    st.sampled_from(["pre", "post", "prune", "prune", "", "..", "pre\0"]),
    st.fixed_dictionaries({}, optional=dict.fromkeys(VARIABLES, VALUES)),
    st.booleans(),
)
def test_environments(world: World, role: str, environment: Mapping[str, str], valid: bool) -> None:
    if valid:
        named = {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": f"{T}_hourly"}
        environment = {**environment, **named}
    filled = {name: world.filled(value) for name, value in environment.items()}
    world.reset()
    codes: list[int] = []
    world.beside(lambda: codes.append(main.run([role], filled)))
    assert codes and codes[0] in (0, 1, 2)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """JSON in which something is changed, added, missing, cut off or not JSON at all."""
    decoded = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        at: Any = decoded
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or draw(st.booleans()):
                if isinstance(at, dict) and draw(st.integers(0, 9)) == 0:
                    del at[key]
                else:
                    at[key] = copy.deepcopy(draw(HOSTILE))
                break
            at = at[key]
    content = json.dumps(decoded).encode()
    way = draw(st.integers(0, 9))
    if way == 0:
        return content[: draw(st.integers(0, len(content)))]
    if way == 1:
        place = draw(st.integers(0, len(content) - 1))
        return content[:place] + draw(st.binary(max_size=4)) + content[place + 1 :]
    if way == 2:
        return draw(st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b"\0" * 100_000]))
    return content


# What leads out: link in our directories -> where to in the canary tree.
LINKS = st.lists(
    st.sampled_from(
        [
            (f"journal/{UUID}.json", f"{UUID}.json"),
            (f"journal/{UUID}.damaged", "file"),
            ("journal/vault.id", "file"),
            ("vault/web", "web"),
            (f"vault/web/{T}", T),
            (f"vault/web/.incoming-{CAPTURE}", CAPTURE),
            (f"vault/web/.removing-{T}", T),
            (f"vault/web/{T}/manifest.json", "file"),
            (f"vault/web/{T}/memory.img", "memory.img"),
            ("vault/.zvmsnap-vault", "file"),
            (f"staging/{CAPTURE}", CAPTURE),
            (f"staging/{CAPTURE}/point", f"{CAPTURE}/point"),
            (f"staging/{CAPTURE}/vda.zvmsnap.qcow2", "vda.zvmsnap.qcow2"),
            (f"staging/{CAPTURE}/point/memory.img", "memory.img"),
            (f"staging/{CAPTURE}/point/domain.xml", "domain.xml"),
            (f"locks/{UUID}.lock", "file"),
            ("locks/vault.lock", "file"),
        ]
    ),
    max_size=3,
    unique=True,
)


def link(world: World, links: list[tuple[str, str]]) -> None:
    for source, target in links:
        path = world.root / "ours" / source
        with suppress(FileExistsError, NotADirectoryError):
            if path.parent.resolve().is_relative_to(world.root / "ours"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(world.canary / target)


def listing() -> None:
    points.list_points(as_json=True)


def plain_listing() -> None:
    points.list_points()


def by_post() -> None:
    main.run(["post"], {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": f"{T}_hourly"})


def by_prune() -> None:
    main.run(["prune"], {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": f"{T}_hourly"})


def by_hand(world: World) -> None:
    recover.recover(world.config)


WHOLE_ENTRY = msgspec.json.encode(
    {
        "schema": 3,
        "domain": "web",
        "uuid": UUID,
        "run": T,
        "request_datasets": ["tank/web"],
        "snapshot_names": [f"{T}_hourly"],
        "preexisting_guids": [7],
        "owner": {"pid": 4711, "started": 815, "boot": "a-boot"},
        "capture": CAPTURE,
        "level": "memory",
        "reason": None,
        "disks": [
            {
                "target": "vda",
                "type": "file",
                "format": "raw",
                "base": "/tank/web/vda.raw",
                "dataset": "tank/web",
                "path": "vda.raw",
                "overlay": f"/staging/{CAPTURE}/vda.zvmsnap.qcow2",
            }
        ],
        "created": "2026-11-20T03:00:00.000+00:00",
        "step": "frozen",
        "memory_format": "raw",
        "committed_overlays": [f"/staging/{CAPTURE}/vda.zvmsnap.qcow2"],
        "original_downtime_ms": 300,
        "disks_frozen_at_s": 1.0,
    }
)


@cases(3500)
@given(
    damaged(WHOLE_ENTRY) | st.just(WHOLE_ENTRY),
    LINKS,
    st.sampled_from([by_hand, by_post, by_prune, listing, plain_listing]),
    st.booleans(),
)
def test_journals(
    world: World,
    content: bytes,
    links: list[tuple[str, str]],
    read: Callable[..., None],
    there: bool,
) -> None:
    world.reset()
    if not there:
        world.host.known.clear()
    link(world, links)
    path = world.root / "ours" / "journal" / f"{UUID}.json"
    if not path.is_symlink():
        path.write_bytes(content.replace(b"{canary}", str(world.canary).encode()))
    point = world.root / "ours" / "staging" / CAPTURE / "point"
    if point.resolve().is_relative_to(world.root / "ours"):
        point.mkdir(parents=True, exist_ok=True)
        for name in ("memory.img", "domain.xml"):
            if not (point / name).is_symlink():
                (point / name).write_text("<domain/>")
    if read is by_hand:
        world.beside(lambda: by_hand(world))
    else:
        world.beside(read)


def test_the_whole_entry_is_one(world: World) -> None:
    """Or the cases above would all be of damaged ones."""
    assert msgspec.json.decode(WHOLE_ENTRY, type=Entry).capture == CAPTURE
    world.reset()
    (world.root / "ours" / "journal" / f"{UUID}.json").write_bytes(WHOLE_ENTRY)
    assert len(Journal(world.config.journal_dir).entries()) == 1


WHOLE_MANIFEST = msgspec.json.encode(
    {
        "schema": 2,
        "domain": "web",
        "uuid": UUID,
        "run": T,
        "created": "2026-11-20T03:00:00.000+00:00",
        "capture": CAPTURE,
        "level": "memory",
        "reason": None,
        "snapshots": [{"dataset": "tank/web", "name": f"{T}_hourly", "guid": 1, "createtxg": 1}],
        "disks": [
            {
                "target": "vda",
                "type": "file",
                "format": "raw",
                "source": "/tank/web/vda.raw",
                "dataset": "tank/web",
                "path": "vda.raw",
            }
        ],
        "memory": {
            "file": "memory.img",
            "format": "raw",
            "compression": "none",
            "image_bytes": 4,
            "stored_bytes": 4,
            "sha256": "00",
        },
        "host": dict.fromkeys(
            ["libvirt", "qemu", "host_cpu", "machine", "arch", "emulator", "cpu_mode", "cpu_model"],
            "x",
        ),
        "timing": {"pause_s": 0.1},
    }
)


def found_by_sweep(world: World) -> None:
    points.prune_points(False, True)


def found_dry(world: World) -> None:
    points.prune_points(True, False)


def shown(world: World) -> None:
    points.show(f"web@{T}", False)


def shown_as_json(world: World) -> None:
    points.show(f"web@{T}", True)


@cases(2500)
@given(
    damaged(WHOLE_MANIFEST) | st.just(WHOLE_MANIFEST),
    LINKS,
    st.sampled_from(
        [
            found_by_sweep,
            found_by_sweep,
            found_dry,
            shown,
            shown_as_json,
            lambda world: listing(),
            lambda world: plain_listing(),
            lambda world: by_prune(),
            by_hand,
        ]
    ),
)
def test_manifests(
    world: World,
    content: bytes,
    links: list[tuple[str, str]],
    read: Callable[[World], None],
) -> None:
    world.reset()
    link(world, links)
    path = world.root / "ours" / "vault" / "web" / T / "manifest.json"
    if path.parent.resolve().is_relative_to(world.root / "ours"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.write_bytes(content.replace(b"{canary}", str(world.canary).encode()))
    world.beside(lambda: read(world))


def test_the_whole_manifest_is_one(world: World) -> None:
    assert msgspec.json.decode(WHOLE_MANIFEST, type=Manifest).run == T
    world.reset()
    path = world.root / "ours" / "vault" / "web" / T / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(WHOLE_MANIFEST)
    assert [point.name for point in prune.find(world.config).orphans] == [f"web@{T}"]


def test_the_canary_is_looked_at(world: World) -> None:
    world.reset()

    def trample() -> None:
        (world.canary / "web" / "file").write_text("trampled")

    with pytest.raises(AssertionError):
        world.beside(trample)
    world.untouched = world.outside()
