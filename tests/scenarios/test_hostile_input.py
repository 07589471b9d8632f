"""Any file in our directories, and any words of a caller: at most one line of error, and nothing
outside of our directories is changed.

10 000 cases, with other dice each time. Beside our directories is a canary tree, to which hostile
paths and symlinks lead. A failure says how to repeat its case.
"""

import copy
import dataclasses
import io
import json
import logging
import os
import random
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs, listed
from zvmsnap.cli import points
from zvmsnap.common import signals
from zvmsnap.common.errors import QemuImgFailed, ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.disks import qemu_img
from zvmsnap.hooks import main
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points.manifest import Manifest
from zvmsnap.recovery import recover
from zvmsnap.retention import prune
from zvmsnap.zfs import mounts, types, zfs

T = "autosnap_2026-11-20_03:00:00"
CAPTURE = f"{UUID}.00000001"
# {canary} becomes the path of the canary tree.
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
REPEAT = "ZVMSNAP_TEST_HOSTILE_CASE"


class Dice(random.Random):
    """Makes a case. Hypothesis would take several times as long as the cases themselves."""

    def text(self, most: int) -> str:
        """Any characters but surrogates; often those that end or escape something."""
        plain = "\0\n\r\t \"'\\/.,@%{}[]-az09\x7f\x85\u2028\ufeff\U0010ffff"
        letters = []
        for _ in range(self.randint(0, most)):
            anything = self.choice((self.randrange(0xD800), self.randrange(0xE000, 0x110000)))
            letters.append(self.choice((self.choice(plain), chr(anything))))
        return "".join(letters)

    def json(self, depth: int = 0) -> Any:
        """Any JSON, three levels deep."""
        kind = self.randrange(9 if depth < 3 else 7)
        match kind:
            case 0 | 1 | 2:
                return (None, False, True)[kind]
            case 3:
                return self.choice((0, 1, -1, self.randint(-(2**70), 2**70)))
            case 4:
                return self.choice((0.5, -0.0, 1e-320, self.uniform(-1e18, 1e18)))
            case 5 | 6:
                return self.text(5)
            case 7:
                return [self.json(depth + 1) for _ in range(self.randint(0, 3))]
            case _:
                return {self.text(5): self.json(depth + 1) for _ in range(self.randint(0, 3))}

    def hostile(self) -> Any:
        """A value that was not expected."""
        return self.choice((self.choice(LEADING_OUT), self.choice(HUGE), self.json()))

    def some(self, things: Sequence[Any], most: int) -> list[Any]:
        """Some of these things, each once."""
        return self.sample(things, self.randint(0, most))


def run_cases(number: int, run: Callable[[Dice], None]) -> None:
    """Run that many cases, or the one that the environment names."""
    named = os.environ.get(REPEAT)
    first = int(named) if named else secrets.randbelow(2**48)
    for seed in range(first, first + (1 if named else number)):
        try:
            run(Dice(seed))
        except BaseException as error:
            error.add_note(f"{REPEAT}={seed} repeats this case")
            raise


class LineChecker(logging.Handler):
    """Formats each line, and fails if that cannot be done."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        assert "Traceback" not in line


class AnyZfs(FakeZfs):
    """Has each snapshot that it is asked for; all names must be fit for a command line."""

    def snapshots(self, names: Any) -> types.NamedSnapshots:
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
        """Empty our directories; the guest is as at first."""
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
        """All files that are not ours: any change of one changes its ctime, or its name."""
        files: list[tuple[object, ...]] = []
        pending = [str(self.root), str(self.root / "ours"), str(self.canary)]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.name in OURS or entry.path in (
                        str(self.root / "ours"),
                        str(self.canary),
                    ):
                        continue
                    status = entry.stat(follow_symlinks=False)
                    files.append((entry.path, status.st_ino, status.st_mode, status.st_ctime_ns))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        return sorted(files)

    def unharmed_by(self, do: Callable[[], object]) -> None:
        """Do it. No exception but ours and OSError, and nothing changes outside."""
        with redirect_stdout(io.StringIO()):
            try:
                do()
            except (ZvmsnapError, OSError, typer.Exit) as error:
                assert str(error) or isinstance(error, typer.Exit)
        assert self.outside() == self.untouched

    def filled(self, value: Any) -> Any:
        """The value with the path of the canary tree."""
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
    """A directory, in RAM if the machine has one: it is emptied 10 000 times."""
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
    checker = LineChecker()
    handlers, propagate = logger.handlers[:], logger.propagate

    def no_images(*_arguments: str) -> str:
        raise QemuImgFailed("no")

    with pytest.MonkeyPatch.context() as patch:
        made.host.install(patch)
        known.install(patch)
        patch.setattr(zfs, "all_snapshots", lambda guids=None: listed([], "tank"))
        web = types.Dataset("tank/web", "fs", False)
        patch.setattr(zfs, "datasets", lambda _tops=(): {"tank/web": web})
        patch.setattr(mounts, "read_table", list)
        patch.setattr(qemu_img, "_run", no_images)
        patch.setattr(signals, "finish_before_dying", lambda: None)
        patch.setattr(signals, "cancelled_with_parent", lambda parent: threading.Event())
        patch.setenv("ZVMSNAP_CONFIG", str(root / "config.toml"))
        logger.handlers[:], logger.propagate = [checker], False
        yield made
        logger.handlers[:], logger.propagate = handlers, propagate


WORDS = (*LEADING_OUT, "tank/web", "tank/web", f"{T}_hourly", f"tank/web@{T}_hourly", "z" * 50_000)
VARIABLES = (
    "SANOID_TARGET",
    "SANOID_TARGETS",
    "SANOID_SNAPNAME",
    "SANOID_SNAPNAMES",
    "SANOID_PRE_FAILURE",
    "SANOID_SCRIPT",
    "SANOID_TYPES",
)


def words(dice: Dice) -> str:
    """Some words, in a list as sanoid makes it."""
    return ",".join(
        dice.choice((dice.choice(WORDS), dice.text(20))) for _ in range(dice.randint(0, 4))
    )


def test_environments(world: World) -> None:
    def case(dice: Dice) -> None:
        role = dice.choice(["pre", "post", "prune", "prune", "", "..", "pre\0"])
        environment = {name: words(dice) for name in dice.some(VARIABLES, len(VARIABLES))}
        if dice.random() < 0.5:
            environment |= {"SANOID_TARGET": "tank/web", "SANOID_SNAPNAME": f"{T}_hourly"}
        filled = {name: world.filled(value) for name, value in environment.items()}
        world.reset()
        codes: list[int] = []
        world.unharmed_by(lambda: codes.append(main.run([role], filled)))
        assert codes and codes[0] in (0, 1, 2)

    run_cases(4000, case)


def damaged(dice: Dice, whole: bytes) -> bytes:
    """JSON in which something is changed, added, missing, cut off or not JSON at all."""
    decoded = json.loads(whole)
    for _ in range(dice.randint(1, 3)):
        damage(dice, decoded)
    content = json.dumps(decoded).encode()
    position = dice.randrange(len(content))
    match dice.randrange(10):
        case 0:
            return content[:position]
        case 1:
            return content[:position] + dice.randbytes(dice.randint(0, 4)) + content[position + 1 :]
        case 2:
            return dice.choice([dice.randbytes(40), b"", b"[" * 100_000, b"\0" * 100_000])
    return content


def damage(dice: Dice, decoded: Any) -> None:
    """Change or remove one value somewhere in it."""
    at = decoded
    while keys := list(at) if isinstance(at, dict) else list(range(len(at))):
        key = dice.choice(keys)
        if isinstance(at[key], dict | list) and dice.random() < 0.5:
            at = at[key]
            continue
        if isinstance(at, dict) and dice.random() < 0.1:
            del at[key]
        else:
            at[key] = copy.deepcopy(dice.hostile())
        return


# Links in our directories, and where in the canary tree they lead.
LINKS = (
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
    recover.recover_guests(world.config)


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


def test_journals(world: World) -> None:
    readers = (lambda: by_hand(world), by_post, by_prune, listing, plain_listing)

    def case(dice: Dice) -> None:
        world.reset()
        if dice.random() < 0.5:
            world.host.known.clear()
        link(world, dice.some(LINKS, 3))
        path = world.root / "ours" / "journal" / f"{UUID}.json"
        content = WHOLE_ENTRY if dice.random() < 0.5 else damaged(dice, WHOLE_ENTRY)
        if not path.is_symlink():
            path.write_bytes(content.replace(b"{canary}", str(world.canary).encode()))
        point = world.root / "ours" / "staging" / CAPTURE / "point"
        if point.resolve().is_relative_to(world.root / "ours"):
            point.mkdir(parents=True, exist_ok=True)
            for name in ("memory.img", "domain.xml"):
                if not (point / name).is_symlink():
                    (point / name).write_text("<domain/>")
        world.unharmed_by(dice.choice(readers))

    run_cases(3500, case)


def test_the_whole_entry_is_one(world: World) -> None:
    """Or all cases above would be of damaged ones."""
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


def prune_vault() -> None:
    points.prune_points(False, True)


def prune_dry() -> None:
    points.prune_points(True, False)


def shown() -> None:
    points.show(f"web@{T}", False)


def shown_as_json() -> None:
    points.show(f"web@{T}", True)


def test_manifests(world: World) -> None:
    readers: tuple[Callable[[], None], ...] = (
        *(prune_vault, prune_vault, prune_dry, shown, shown_as_json, listing, plain_listing),
        *(by_prune, lambda: by_hand(world)),
    )

    def case(dice: Dice) -> None:
        world.reset()
        link(world, dice.some(LINKS, 3))
        path = world.root / "ours" / "vault" / "web" / T / "manifest.json"
        content = WHOLE_MANIFEST if dice.random() < 0.5 else damaged(dice, WHOLE_MANIFEST)
        if path.parent.resolve().is_relative_to(world.root / "ours"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink():
                path.write_bytes(content.replace(b"{canary}", str(world.canary).encode()))
        world.unharmed_by(dice.choice(readers))

    run_cases(2500, case)


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
        world.unharmed_by(trample)
    world.untouched = world.outside()
