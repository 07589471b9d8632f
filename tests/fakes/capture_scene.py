"""The pre hook, run for guests with a disk each on a dataset of their own, and its trace."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.guest import UUID, DumpedGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from tests.fakes.zfs_pool import never
from zvmsnap.capture import all_guests
from zvmsnap.common.errors import DumpAborted, LibvirtFailed, NotHeld
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import staging
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import definition, vault
from zvmsnap.quiesce import watchdog
from zvmsnap.virt import domain_xml, qemu_conf
from zvmsnap.zfs import mounts, types, zfs

MEMORY, PAUSED, QUIESCED, CRASH = (
    ConsistencyLevel.MEMORY,
    ConsistencyLevel.PAUSED,
    ConsistencyLevel.QUIESCED,
    ConsistencyLevel.CRASH,
)
RUN = "autosnap_2026-11-20_03:00:00"
OWNER = Process(4711, 815, "a-boot")


class Scene:
    """A host on which pre runs.

    `trace` has the steps of the journal ("> dump"), the calls of libvirt ("snapshot"), and
    "start watchdog" and "require watchdog"; with more than one guest, behind the guest's name.
    """

    def __init__(
        self, root: Path, config: Config, host: FakeHost, patch: pytest.MonkeyPatch
    ) -> None:
        self.root = root
        self.config = msgspec.structs.replace(config, guest_scripts=str(root / "guest.d"))
        self.host = host
        self.patch = patch
        self.trace: list[str] = []
        # What happens when the trace gets such a line.
        self.when: dict[str, Callable[[], None]] = {}
        self.modes: dict[str, dict[str, str]] = {}
        self.cancelled = threading.Event()
        self.has_watchdog = True
        self._table = [mounts.Mount(1, 0, "/", "/", "")]
        self._write = Journal.write
        self._post_within_s = 0.0
        self._steps: dict[str, str] = {}
        host.known.clear()
        patch.setattr(zfs, "datasets", self._datasets)
        patch.setattr(mounts, "read_table", lambda: self._table)
        # Whether QEMU's user has access to the overlays is no subject here.
        patch.setattr(staging, "check_usable", lambda *_: None)
        patch.setattr(watchdog, "start_watchdog", lambda *_: self._say("", "start watchdog"))
        patch.setattr(watchdog, "require_watchdog", self._require)
        patch.setattr(
            watchdog, "warn_without_watchdog", lambda *_: self._say("", "look for watchdog")
        )
        patch.setattr(Journal, "write", lambda journal, entry: self._written(journal, entry))
        self.config.staging_dir.mkdir(exist_ok=True)

    def pre(self, *types: str, post_within_s: float = 0) -> bool:
        """Run it for snapshots of these types."""
        self._post_within_s = post_within_s
        names = tuple(f"{RUN}_{each}" for each in types or ("hourly",))
        call = HookCall(Role.PRE, tuple(self.modes), names)
        return all_guests.begin(call, self.config, OWNER, never, self.cancelled, post_within_s)

    def add(self, name: str = "web", uuid: str = UUID) -> DumpedGuest:
        """A guest with an agent, and its dataset."""
        mountpoint = self.mount(f"tank/{name}")
        guest = DumpedGuest(name, uuid, vda=make_base(mountpoint / "vda.raw"))
        guest.agent = FakeAgent()
        guest.calls = Calls(lambda call: self._say(name, call))
        self.modes[f"tank/{name}"] = {}
        self.host.known.append(guest)
        return guest

    def mount(self, dataset: str) -> Path:
        """Mount a dataset; returns where."""
        mountpoint = self.root / dataset
        above = [each for each in self._table if mountpoint.is_relative_to(each.mountpoint)]
        parent = max(above, key=lambda each: len(each.mountpoint)).number
        number = len(self._table) + 1
        self._table.append(mounts.Mount(number, parent, "/", str(mountpoint), dataset))
        return mountpoint

    def script(self, name: str, text: str) -> None:
        """Install an administrator's program; it runs in `root`."""
        path = self.root / "guest.d" / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\ncd {self.root}\n{text}\n")
        path.chmod(0o755)

    def entries(self) -> list[Entry]:
        return Journal(self.config.journal_dir).entries()

    def change(self, **keys: Any) -> None:
        """Change the configuration."""
        self.config = msgspec.structs.replace(self.config, **keys)

    def assert_at_rest(self, but: Entry | None = None) -> None:
        """No guest is held or on an overlay, but the one of this entry."""
        captures = [but.capture] if but else []
        assert [path.name for path in self.config.staging_dir.iterdir()] == captures
        for guest in self.host.known:
            own = but if but and but.uuid == guest.uuid else None
            assert bool(guest.paused_because) is bool(own and own.paused)
            frozen = guest.agent is not None and guest.agent.frozen
            assert frozen is bool(own and own.frozen)
            on_overlay = own and own.may_be_on_overlay
            assert (guest.live["vda"] in guest.below) is bool(on_overlay)
            # Whoever releases a paused guest puts it back.
            noted_ms = own.original_downtime_ms if own and own.paused else None
            assert (noted_ms or guest.allowed_ms) == 300

    def _datasets(self, _tops: Sequence[str] = ()) -> dict[str, types.Dataset]:
        return {
            name: types.Dataset(
                name,
                "filesystem",
                compressed=False,
                mode=own.get("", ""),
                modes={kind: mode for kind, mode in own.items() if kind},
            )
            for name, own in self.modes.items()
        }

    def _require(self, config: Config, owner: Process, post_within_s: float) -> None:
        assert (owner, post_within_s) == (OWNER, self._post_within_s)
        self._say("", "require watchdog")
        if not self.has_watchdog:
            raise NotHeld("no watchdog runs")

    def _written(self, journal: Journal, entry: Entry) -> None:
        self._write(journal, entry)
        if entry.step and self._steps.get(entry.capture) != entry.step:
            self._steps[entry.capture] = entry.step
            self._say(entry.domain, f"> {entry.step}")

    def _say(self, name: str, what: str) -> None:
        self.trace.append(f"{name} {what}" if name and len(self.modes) > 1 else what)
        self.when.pop(self.trace[-1], lambda: None)()


class Away:
    """The vault's file system is not mounted."""

    def __init__(self, scene: Scene) -> None:
        vault.claim(scene.config)
        self._mark = scene.config.vault_dir / vault.MARK

    def __enter__(self) -> None:
        self._content = self._mark.read_bytes()
        self._mark.unlink()

    def __exit__(self, *_exception: object) -> None:
        self._mark.write_bytes(self._content)


class Calls(list[str]):
    """Calls of a guest, reported as they come."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def append(self, call: str) -> None:
        super().append(call)
        self._say(call)


def failing(why: str, kind: type[LibvirtFailed] = LibvirtFailed) -> Callable[[], None]:
    """A call that fails, in place of what a guest does."""

    def fail() -> None:
        raise kind(why)

    return fail


# -- what is so, or goes wrong

Fault = Callable[[Scene, DumpedGuest], None]


def fine(scene: Scene, guest: DumpedGuest) -> None:
    pass


def overlays(scene: Scene, guest: DumpedGuest) -> None:
    scene.change(quiesce_overlay=True)


def shareable(scene: Scene, guest: DumpedGuest) -> None:
    scene.patch.setattr(domain_xml, "why_no_overlay", lambda _disk: "vda is shareable")


def overlays_but_shareable(scene: Scene, guest: DumpedGuest) -> None:
    overlays(scene, guest)
    shareable(scene, guest)


def with_scripts(scene: Scene, guest: DumpedGuest) -> None:
    scene.script("pre-freeze", "echo pre >> ran")
    scene.script("post-thaw", "echo post >> ran")


def off(scene: Scene, guest: DumpedGuest) -> None:
    guest.active = False


def no_channel(scene: Scene, guest: DumpedGuest) -> None:
    guest.agent = None


def agent_of(guest: DumpedGuest) -> FakeAgent:
    assert guest.agent
    return guest.agent


PREPARED = ["> staging", "> definition"]
DUMP = [*PREPARED, "> dump", "allow 30", "snapshot", "allow 300", "> read header", "> frozen"]
DUMP_PAUSED = ["require watchdog", *PREPARED, "> dump", "allow 30", "snapshot", "> frozen"]
FREEZE = [*PREPARED, "> barrier", "require watchdog", "> freeze", "freeze"]

# A name for it, what was asked for, what is so, what is reached, and how.
WHOLE: list[tuple[str, str, Fault, ConsistencyLevel, list[str]]] = [
    ("memory", "memory", fine, MEMORY, DUMP),
    ("paused", "paused", fine, PAUSED, DUMP_PAUSED),
    ("paused, no overlay possible", "paused", shareable, PAUSED, DUMP_PAUSED),
    ("quiesced", "quiesced", fine, QUIESCED, [*FREEZE, "> frozen"]),
    (
        "quiesced, with the administrator's own",
        "quiesced",
        with_scripts,
        QUIESCED,
        [*PREPARED, "> pre-freeze", "require watchdog", *FREEZE[2:], "> frozen"],
    ),
    (
        "quiesced, with overlays",
        "quiesced",
        overlays,
        QUIESCED,
        [*FREEZE, "> overlay", "disk snapshot", "> thaw", "thaw", "> frozen"],
    ),
    (
        "quiesced, no overlay possible",
        "quiesced",
        overlays_but_shareable,
        QUIESCED,
        [*FREEZE, "> frozen"],
    ),
    ("crash", "crash", fine, CRASH, [*PREPARED, "> waiting"]),
    ("off", "memory", off, ConsistencyLevel.OFFLINE, [*PREPARED, "> waiting"]),
]


def no_dump(scene: Scene, guest: DumpedGuest) -> None:
    guest.at["snapshot"] = failing("no dump")


def refused(scene: Scene, guest: DumpedGuest) -> None:
    def refuse() -> None:
        raise LibvirtFailed("cannot migrate domain: a device that only QEMU knows", 55)

    guest.at["snapshot"] = refuse


def busy_meanwhile(scene: Scene, guest: DumpedGuest) -> None:
    refused(scene, guest)
    scene.when["> dump"] = lambda: scene.patch.setattr(guest, "has_block_job", lambda _target: True)


def too_busy(scene: Scene, guest: DumpedGuest) -> None:
    guest.at["snapshot"] = failing("aborted", DumpAborted)


def half_an_image(scene: Scene, guest: DumpedGuest) -> None:
    guest.dumped = b"LibvirtQemudPart" + bytes(200)


def sparse(scene: Scene, guest: DumpedGuest) -> None:
    scene.patch.setattr(qemu_conf, "why_unloadable", lambda: "qemu.conf says sparse")


def has_old_overlay(scene: Scene, guest: DumpedGuest) -> None:
    """QEMU has an overlay open that no disk uses."""
    overlay = scene.root / "old" / f"{guest.uuid}.00000001" / "vda.zvmsnap.qcow2"
    overlay.parent.mkdir(parents=True)
    overlay.touch()
    assert guest.qemu
    guest.qemu.nodes.open(overlay)


def keeps_old_overlay(scene: Scene, guest: DumpedGuest) -> None:
    has_old_overlay(scene, guest)
    assert guest.qemu
    guest.qemu.nodes.in_use = {"libvirt-1-format"}


def full(scene: Scene, guest: DumpedGuest) -> None:
    scene.change(limits=Limits(overlay_room_mib=1 << 40))


def no_watchdog(scene: Scene, guest: DumpedGuest) -> None:
    scene.has_watchdog = False


def disconnected(scene: Scene, guest: DumpedGuest) -> None:
    agent_of(guest).connected = False


def silent(scene: Scene, guest: DumpedGuest) -> None:
    agent_of(guest).answering = False


def forbidden(scene: Scene, guest: DumpedGuest) -> None:
    agent_of(guest).forbidden = {"guest-fsfreeze-freeze"}


def no_freeze(scene: Scene, guest: DumpedGuest) -> None:
    guest.at["freeze"] = failing("hook failed")


def no_file_system(scene: Scene, guest: DumpedGuest) -> None:
    agent_of(guest).file_systems = 0


def thaws_alone(scene: Scene, guest: DumpedGuest) -> None:
    scene.patch.setattr(agent_of(guest), "freeze", lambda: 2)


def pre_freeze_fails(scene: Scene, guest: DumpedGuest) -> None:
    with_scripts(scene, guest)
    scene.script("pre-freeze", "echo pre >> ran\necho no database\nexit 3")


def no_overlay(scene: Scene, guest: DumpedGuest) -> None:
    overlays(scene, guest)
    guest.at["disk snapshot"] = failing("no overlay")


def thaws_under_the_overlay(scene: Scene, guest: DumpedGuest) -> None:
    overlays(scene, guest)

    def thaw() -> None:
        agent_of(guest).thaw()

    guest.at["disk snapshot"] = thaw


def no_definition(scene: Scene, guest: DumpedGuest) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("no space left on device")

    scene.patch.setattr(definition, "store", fail)
