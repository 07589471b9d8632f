import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import DumpedGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from tests.fakes.zfs_pool import FakeZfs, never
from zvmsnap.capture import all_guests
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import staging
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import CloneOperation, Operations, StartState
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.virt import qemu_conf, tpm_state
from zvmsnap.zfs import mounts, types, volume, zfs

DATASET = types.Dataset("tank/web", "filesystem", compressed=False, guid=4711)
CALL = HookCall(Role.PRE, ("tank/web",), ("autosnap_2026-11-20_03:00:00_hourly",))


@pytest.fixture
def guest(tmp_path: Path) -> DumpedGuest:
    return DumpedGuest(vda=make_base(tmp_path / "tank" / "vda.raw"))


@pytest.fixture
def begin(
    tmp_path: Path,
    config: Config,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], tuple[bool, Entry]]:
    """Runs pre for tank/web, which has the guest's disk; returns its entry after that."""
    monkeypatch.setattr(zfs, "datasets", lambda _tops=(): {"tank/web": DATASET})
    table = [
        mounts.Mount(1, 0, "/", "/", ""),
        mounts.Mount(2, 1, "/", f"{tmp_path}/tank", "tank/web"),
    ]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    # QEMU's user, who must pass through to the overlays, is no subject here.
    monkeypatch.setattr(staging, "check_usable", lambda *_arguments: None)

    def run() -> tuple[bool, Entry]:
        config.staging_dir.mkdir(exist_ok=True)
        complete = all_guests.begin(CALL, config, Process.none(), never, threading.Event(), 0)
        (entry,) = Journal(config.journal_dir).entries()
        return complete, entry

    return run


def test_with_memory(begin: Callable[[], tuple[bool, Entry]], guest: DumpedGuest) -> None:
    complete, entry = begin()
    assert (complete, entry.level, entry.reason) == (True, ConsistencyLevel.MEMORY, None)
    assert (entry.step, entry.memory_format) == ("frozen", "raw")
    assert guest.live["vda"] == entry.disks[0].overlay


def test_what_its_disk_is_is_written_down(begin: Callable[[], tuple[bool, Entry]]) -> None:
    _, entry = begin()
    (disk,) = entry.disks
    assert (disk.dataset, disk.dataset_guid, disk.path) == ("tank/web", 4711, "vda.raw")


@pytest.mark.parametrize("clone_exists", [False, True])
def test_disk_by_a_link_that_leads_to_a_clone(
    begin: Callable[[], tuple[bool, Entry]],
    guest: DumpedGuest,
    monkeypatch: pytest.MonkeyPatch,
    clone_exists: bool,
) -> None:
    link, part = "/dev/disk/by-uuid/1234", types.Partition(1, 1 << 20, 4 << 20)
    devices = {"/own": 1, "/clone": 2, link: 2 if clone_exists else 1}
    places = {1: mounts.DiskLocation("tank/web", "", part), 2: mounts.DiskLocation("tank/w2", "")}
    monkeypatch.setattr(volume, "device_number", devices.get)
    monkeypatch.setattr(volume, "location_at", places.get)
    # Overlays of a device are no subject here.
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: "asked for an image")
    guest.live["vda"] = guest.persistent["vda"] = link
    assert guest.qemu
    guest.qemu.instead[link] = "/own"
    complete, entry = begin()
    (disk,) = entry.disks
    assert (disk.base, disk.dataset, disk.partition) == (link, "tank/web", part)
    assert entry.level is ConsistencyLevel.CRASH
    known = f"vda: {link} leads to tank/w2 now, but its disk is {part} of tank/web"
    assert (entry.reason == f"its disks are not surely known: {known}") is clone_exists
    assert complete is clone_exists


def test_no_point_of_a_guest_that_is_off_by_a_link_of_a_clone(
    config: Config,
    begin: Callable[[], tuple[bool, Entry]],
    guest: DumpedGuest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = "/dev/disk/by-uuid/1234"
    monkeypatch.setattr(volume, "location_of", lambda _: mounts.DiskLocation("tank/web", ""))
    guest.persistent["vda"] = link
    guest.active = False
    with pytest.raises(ValueError, match="not enough values"):
        begin()
    assert Journal(config.journal_dir).entries() == []
    (error,) = (record.message for record in caplog.records)
    assert error.startswith(f"web (tank/web): no point: vda: {link} is a link by the content")


def test_disk_of_which_qemu_has_another_open_is_named(
    config: Config,
    begin: Callable[[], tuple[bool, Entry]],
    guest: DumpedGuest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = guest.live["vda"]
    assert guest.qemu
    guest.qemu.instead[path] = "/replaced"
    with pytest.raises(ValueError, match="not enough values"):
        begin()
    (warning,) = (record.message for record in caplog.records)
    known = f"vda: QEMU has another file open than {path} is now"
    assert warning == f"web (tank/web): no point: {known}"


def test_no_dump_that_could_not_be_loaded(
    begin: Callable[[], tuple[bool, Entry]],
    guest: DumpedGuest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: "qemu.conf says sparse")
    complete, entry = begin()
    assert (complete, entry.level) == (False, ConsistencyLevel.CRASH)
    assert entry.reason == "qemu.conf says sparse"
    assert guest.calls == []
    assert not entry.may_be_on_overlay
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["web (tank/web): not of level memory: qemu.conf says sparse"]


EMULATED = "<tpm><backend type='emulator' version='2.0'/></tpm>"
PASSED_THROUGH = "<tpm><backend type='passthrough'/></tpm>"
CHANGED = "the TPM's state changed while RAM was written"
NOT_OURS = "the state of a TPM of type 'passthrough' cannot be captured"


@pytest.mark.parametrize(
    ("device", "changes", "running", "why"),
    [
        pytest.param("", False, True, None, id="none"),
        pytest.param(EMULATED, False, True, None, id="as it was"),
        pytest.param(EMULATED, True, True, CHANGED, id="changed"),
        pytest.param("", True, True, None, id="changed, but of nobody"),
        pytest.param(PASSED_THROUGH, False, True, NOT_OURS, id="passed through"),
        pytest.param(PASSED_THROUGH, False, False, NOT_OURS, id="passed through, off"),
        pytest.param(EMULATED, False, False, None, id="off"),
    ],
)
def test_tpm(
    begin: Callable[[], tuple[bool, Entry]],
    guest: DumpedGuest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    changes: bool,
    running: bool,
    why: str | None,
) -> None:
    monkeypatch.setattr(tpm_state, "SWTPM", tmp_path / "swtpm")
    state = tmp_path / "swtpm" / guest.uuid / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"before")
    guest.tpm = device
    guest.active = running

    def change() -> None:
        state.write_bytes(b"after" if changes else b"before")

    guest.at["snapshot"] = change
    complete, entry = begin()
    assert (complete, entry.level) == (
        True,
        ConsistencyLevel.MEMORY if running else ConsistencyLevel.OFFLINE,
    )
    assert entry.tpm_warning == why
    stored = StagingDir(tmp_path / "staging" / entry.capture).point / "tpm.tar"
    assert stored.exists() is (device == EMULATED)


def clone_operation(guest: DumpedGuest, owner: Process) -> CloneOperation:
    return CloneOperation(
        domain="web",
        uuid=guest.uuid,
        point="web@m",
        directory="/v/web/m",
        owner=owner,
        memory=True,
        start_state=StartState.RUNNING,
        capture=f"{guest.uuid}.00000001",
        network="none",
    )


def test_no_point_of_a_clone_that_is_being_verified(
    begin: Callable[[], tuple[bool, Entry]],
    config: Config,
    guest: DumpedGuest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Operations(config.journal_dir).write(clone_operation(guest, Process.of(os.getpid())))
    config.staging_dir.mkdir()
    assert all_guests.begin(CALL, config, Process.none(), never, threading.Event(), 0)
    assert (guest.calls, Journal(config.journal_dir).entries()) == ([], [])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_no_point_of_a_guest_that_is_being_restored(
    begin: Callable[[], tuple[bool, Entry]],
    config: Config,
    guest: DumpedGuest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Operations(config.journal_dir).write(clone_operation(guest, Process.none()))
    config.staging_dir.mkdir()
    owner = Process.none()
    assert not all_guests.begin(CALL, config, owner, never, threading.Event(), 0)
    assert (guest.calls, Journal(config.journal_dir).entries()) == ([], [])
    assert list(config.staging_dir.iterdir()) == []
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    why = "a restore of it is under way, or interrupted: zvmsnap recover"
    assert errors == [f"web (tank/web): no point: {why}"]
    Operations(config.journal_dir).close(guest.uuid)
    assert begin()[0]


def test_properties_that_mean_nothing_are_warned_of_once_in_a_round(
    begin: Callable[[], tuple[bool, Entry]],
    config: Config,
    pools: FakeZfs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools.properties = [
        ("tank", "zvmsnap:recursive", "yes"),
        ("tank/web", "zvmsnap:mod", "off"),
        ("tank/web", "zvmsnap:group", "shop"),
        ("tank/db", "zvmsnap:mod", "off"),
    ]
    warned = [
        "tank: zvmsnap:recursive='yes' is ignored: its values are on and off; is on meant?",
        "tank/web: zvmsnap:mod='off' is ignored: zvmsnap knows no such property; is zvmsnap:mode "
        "meant?",
    ]
    assert begin()[0]
    assert [record.message for record in caplog.records] == warned
    assert all_guests.begin(CALL, config, Process.none(), never, threading.Event(), 0)
    assert [record.message for record in caplog.records].count(warned[0]) == 1


def test_properties_that_cannot_be_listed_keep_no_guest_from_its_point(
    begin: Callable[[], tuple[bool, Entry]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise ZfsFailed("zfs get failed (1): no")

    monkeypatch.setattr(zfs, "user_properties", fail)
    complete, entry = begin()
    assert (complete, entry.level) == (True, ConsistencyLevel.MEMORY)
    (record,) = caplog.records
    assert "properties are not looked at" in record.message
