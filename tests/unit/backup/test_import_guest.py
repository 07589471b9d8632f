"""A guest is made of a backup; or nothing of it is left, wherever the work ends."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.fakes.backup_scene import DISK_BYTES, Scene
from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.images import run_qemu_img
from zvmsnap.archive.consolidate import consolidate
from zvmsnap.archive.directory import StoredBackup, described
from zvmsnap.archive.manifest import MANIFEST
from zvmsnap.archive.verify import check_chain
from zvmsnap.backup import leftovers
from zvmsnap.backup.import_guest import GuestImport
from zvmsnap.backup.import_plan import ImportOptions, Start, plan_import
from zvmsnap.backup.work import Works
from zvmsnap.common import json_file
from zvmsnap.common.errors import (
    BackupDamaged,
    ImportFailed,
    ImportImpossible,
    LibvirtFailed,
)
from zvmsnap.common.process import Process
from zvmsnap.virt import domain_xml

STEPS = (
    *("datasets", "disks", "image", "firmware", "define", "start", "check", "resume"),
    "close",
)
AS_ANOTHER = ImportOptions("tank/vm", "web2", start=Start.RESUME)
SAME = ImportOptions("tank/vm", start=Start.BOOT)


@pytest.fixture
def backup(scene: Scene) -> StoredBackup:
    """An increment, with RAM."""
    scene.guest.metadata = "<os><nvram>/old/web_VARS.fd</nvram></os>"
    scene.write(1 << 20, os.urandom(200_000))
    scene.back_up(scene.point("one"))
    scene.write(3 << 20, b"later")
    return scene.back_up(scene.point("two", memory=True))


def make(scene: Scene, backup: StoredBackup, options: ImportOptions) -> FakeGuest:
    plan = plan_import(scene.config, scene.host, backup.directory, options)
    GuestImport.of(scene.config, scene.host, plan).run()
    return next(guest for guest in scene.host.known if guest.uuid == plan.uuid and guest.exists)


def nothing_left(scene: Scene) -> bool:
    return (
        [each.dataset for each in scene.table if each.dataset] == ["tank/web", "tank/vm"]
        and [guest.name for guest in scene.host.guests()] == ["web"]
        and list((scene.root / "nvram").iterdir()) == []
        and scene.nothing_left()
    )


def test_another_guest_with_its_ram(scene: Scene, backup: StoredBackup) -> None:
    made = make(scene, backup, AS_ANOTHER)
    assert (made.name, made.state()) == ("web2", "running")
    path = scene.root / "tank" / "vm" / "web2" / "vda.raw"
    assert (made.live, made.persistent) == ({"vda": str(path)}, {"vda": str(path)})
    assert path.read_bytes() == scene.content(backup)
    assert path.stat().st_blocks * 512 < DISK_BYTES // 2
    assert made.calls == ["define", "load", "pull plugs", "resume"]
    assert (scene.root / "nvram" / "web2_VARS.fd").read_bytes() == b"variables"
    assert made.uuid != UUID and "urn:zvmsnap:clone" not in made.xml()
    assert [each.name for each in path.parent.iterdir()] == ["vda.raw"]
    assert scene.marks == {} and scene.nothing_left()
    assert scene.guest.calls == []


def test_the_same_guest_once_it_is_gone(scene: Scene, backup: StoredBackup) -> None:
    with pytest.raises(ImportImpossible, match=r"web: is here already, the guest that was backed"):
        make(scene, backup, SAME)
    scene.guest.exists = False
    made = make(scene, backup, SAME)
    assert (made.name, made.uuid, made.state()) == ("web", UUID, "running")
    assert made.calls == ["define", "create paused", "resume"]
    assert made.live == {"vda": str(scene.root / "tank" / "vm" / "web" / "vda.raw")}
    assert {disk.format for disk in domain_xml.parse(made.xml()).disks} <= {"raw", "qcow2"}


def test_refused_before_anything_is_made(scene: Scene, backup: StoredBackup) -> None:
    refusals = {
        ImportOptions("tank/vm", "web"): "there is a guest of that name",
        ImportOptions("tank/none", "web2"): "tank/none: is no filesystem that is mounted",
        ImportOptions("tank/vm", "we/b"): "no dataset can be called that",
        ImportOptions("tank", "vm"): "tank: is no filesystem that is mounted",
    }
    for options, why in refusals.items():
        with pytest.raises(ImportImpossible, match=why):
            make(scene, backup, options)
    (scene.root / "nvram" / "web2_VARS.fd").touch()
    with pytest.raises(ImportImpossible, match=r"web2_VARS.fd: exists already"):
        make(scene, backup, AS_ANOTHER)
    (scene.root / "nvram" / "web2_VARS.fd").unlink()
    first = scene.directory.backup(backup.manifest.parent)
    with pytest.raises(ImportImpossible, match=r"has no RAM to be resumed from"):
        make(scene, first, AS_ANOTHER)
    assert nothing_left(scene)


@pytest.mark.parametrize("name", ["vda.qcow2", "memory.img", "nvram.fd"])
def test_a_damaged_backup(scene: Scene, backup: StoredBackup, name: str) -> None:
    path = backup.directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BackupDamaged, match=f"{name} does not match its checksum"):
        make(scene, backup, AS_ANOTHER)
    assert nothing_left(scene)


def test_consolidated_while_it_is_read(
    scene: Scene, backup: StoredBackup, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check_chain

    def check(chain: Sequence[StoredBackup], targets: frozenset[str]) -> None:
        consolidate(scene.directory, UUID, 1)
        real(chain, targets)

    monkeypatch.setattr("zvmsnap.backup.import_plan.check_chain", check)
    why = "was consolidated while it was read: import it again"
    with pytest.raises(ImportImpossible, match=why):
        make(scene, backup, AS_ANOTHER)
    assert nothing_left(scene)
    monkeypatch.setattr("zvmsnap.backup.import_plan.check_chain", real)
    assert make(scene, backup, AS_ANOTHER).is_active()


@pytest.mark.parametrize("step", ["define", "load", "resume"])
def test_a_failure_leaves_nothing(scene: Scene, backup: StoredBackup, step: str) -> None:
    def new_guest(name: str, uuid: str) -> FakeGuest:
        guest = FakeGuest(name, uuid)

        def fail() -> None:
            raise LibvirtFailed("no")

        guest.at[step] = fail
        return guest

    scene.host.new_guest = new_guest  # type: ignore[method-assign]
    with pytest.raises(ImportFailed, match=r"web2 was not made: .*no"):
        make(scene, backup, AS_ANOTHER)
    assert nothing_left(scene)


@pytest.mark.parametrize("options", [AS_ANOTHER, SAME], ids=["another", "same"])
@pytest.mark.parametrize("last", STEPS)
def test_killed_at_each_step(
    scene: Scene, backup: StoredBackup, last: str, options: ImportOptions
) -> None:
    scene.guest.exists = options is AS_ANOTHER
    plan = plan_import(scene.config, scene.host, backup.directory, options)
    work = GuestImport.of(scene.config, scene.host, plan)
    for step in work._steps():
        work._record(step.name)
        step.do()
        if step.name == last:
            break
    (left,), _ = Works(scene.config).all()
    Works(scene.config).write(msgspec.structs.replace(left, owner=Process.none()))
    # Twice: it may be killed, too.
    for _ in range(2):
        interrupted, problems = leftovers.works(scene.config, scene.host)
        assert problems == []
        for each in interrupted:
            assert (each.domain, each.pid) == (plan.domain, 0)
            each.end()
    if last == "close":
        guest = scene.host.guest(plan.uuid)
        assert guest.state() == "running" and scene.marks == {}
        return
    scene.guest.exists = True
    assert nothing_left(scene)


def test_what_another_has_made_since_is_not_touched(scene: Scene, backup: StoredBackup) -> None:
    scene.guest.exists = False
    plan = plan_import(scene.config, scene.host, backup.directory, SAME)
    work = GuestImport.of(scene.config, scene.host, plan)
    work._record("define")
    scene.guest.exists = True  # an administrator has defined the guest again, on its own disks
    (each,), _ = leftovers.works(scene.config, scene.host)
    with pytest.raises(ImportFailed, match=r"has other disks than the import gave it: kept"):
        each.end()
    assert scene.guest.calls == []


# -- backups that were made elsewhere


def rewritten(scene: Scene, backup: StoredBackup, **changes: object) -> StoredBackup:
    """With a manifest that fits what lies there now, and no seal of this host."""
    files = tuple(described(backup.directory / file.name) for file in backup.manifest.files)
    manifest = msgspec.structs.replace(backup.manifest, files=files, **{"seal": "", **changes})
    json_file.write(backup.directory / MANIFEST, manifest)
    return StoredBackup(backup.directory, manifest)


def test_a_definition_that_reaches_more_of_the_host(scene: Scene, backup: StoredBackup) -> None:
    serial = "<serial type='file'><source path='/etc/cron.d/x'/></serial></devices>"
    path = backup.directory / "persistent.xml"
    path.write_text(path.read_text().replace("</devices>", serial))
    rewritten(scene, backup)
    options = ImportOptions("tank/vm", "web2")
    with pytest.raises(ImportImpossible, match=r"was not made on this host.*/etc/cron.d/web2-x"):
        make(scene, backup, options)
    assert make(scene, backup, msgspec_replace(options, trust=True)).state() == "shut off"


def msgspec_replace(options: ImportOptions, *, trust: bool) -> ImportOptions:
    return ImportOptions(options.to, options.name, trust=trust)


def test_an_image_that_names_a_file_of_the_host(
    scene: Scene, backup: StoredBackup, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" + bytes(4090))
    first = scene.directory.backup(backup.manifest.parent)
    image = first.directory / "vda.qcow2"
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, image)
    rewritten(scene, first)
    with pytest.raises(BackupDamaged, match=r"vda.qcow2: names another file than it may"):
        make(scene, backup, AS_ANOTHER)
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(BackupDamaged, match=r"vda.qcow2 cannot be read"):
        make(scene, backup, AS_ANOTHER)
    assert nothing_left(scene)


def test_a_backing_name_is_not_followed(scene: Scene, backup: StoredBackup) -> None:
    """What the image is on is said by the manifest, whatever its header says."""
    other = scene.back_up(scene.point("three"), level="copy")
    image = backup.directory / "vda.qcow2"
    wrong = f"../{other.name}/vda.qcow2"
    expected = scene.content(backup)
    run_qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", wrong, image)
    rewritten(scene, backup)
    make(scene, backup, AS_ANOTHER)
    assert (scene.root / "tank" / "vm" / "web2" / "vda.raw").read_bytes() == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": "../web@2026-11-20T030001Z"},
        {"domain": "a\x1b[2J"},
        {"uuid": "../../etc"},
        {"parent_id": ""},
        {"level": "full"},
    ],
)
def test_a_manifest_that_leads_elsewhere(
    scene: Scene, backup: StoredBackup, changes: dict[str, str]
) -> None:
    rewritten(scene, backup, **changes)
    with pytest.raises(BackupDamaged):
        scene.directory.backup(backup.name)
