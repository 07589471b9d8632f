"""Points that were not made here: what they reach of this host is judged before anything else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.restore_case import put_back
from tests.fakes.restore_scene import DATASET, NAME, NEW, OLD, Machine, Scene, set_scene
from tests.unit.inventory.test_qcow2 import image
from zvmsnap.common.errors import RestoreFailed, RestoreImpossible
from zvmsnap.config.settings import Config
from zvmsnap.inventory import own_images
from zvmsnap.points import definition, memory_image
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    NVRAM,
    PERSISTENT_XML,
    Manifest,
    OtherState,
    SnapshotRef,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore.in_place import InPlaceRestore
from zvmsnap.restore.plan import RestoreOptions, RestorePlan, RestoreRequest, plan_restore
from zvmsnap.virt.save_image import Header

SERIAL = "<serial type='file'><source path='/etc/cron.d/x'/><target port='0'/></serial>"
COLD = RestoreOptions(cold=True)
TRUST = RestoreOptions(cold=True, trust=True)


@pytest.fixture
def scene(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    made = set_scene(config, tmp_path / "pools", manifest, monkeypatch)
    monkeypatch.setattr(definition, "NVRAM_DIR", tmp_path / "nvram")
    (tmp_path / "nvram").mkdir()
    made.made_here = False
    return made


def plan_of(scene: Scene, point: RestorePoint, options: RestoreOptions = COLD) -> RestorePlan:
    return plan_restore(scene.config, scene.host, RestoreRequest(point, options, None))


def with_devices(point: RestorePoint, devices: str, boot: str = "") -> RestorePoint:
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace("<devices>", f"{boot}<devices>{devices}"))
    return point


def test_a_guest_as_any_other_needs_no_trust(scene: Scene) -> None:
    plan = plan_of(scene, scene.point(memory=False))
    assert not any("TRUSTED" in line for line in plan.lines)
    assert plan.operation.firmware_dirs is not None


def test_what_reaches_the_host_is_refused_with_what_to_look_at(scene: Scene) -> None:
    point = with_devices(scene.point(memory=False), SERIAL)
    with pytest.raises(RestoreImpossible) as raised:
        plan_of(scene, point)
    (line,) = str(raised.value).splitlines()
    assert "was not made on this host" in line
    assert "serial 0: file /etc/cron.d/x" in line
    assert f"domain.xml and persistent.xml in {point.directory}" in line
    assert line.endswith("say --trust")


def test_trust_makes_it_work_and_the_plan_says_so(scene: Scene) -> None:
    point = with_devices(scene.point(memory=False), SERIAL)
    plan = plan_of(scene, point, TRUST)
    assert "  TRUSTED, as it was not made on this host: serial 0: file /etc/cron.d/x" in plan.lines
    assert plan.operation.firmware_dirs is None
    put_back(scene, point, TRUST)


def test_what_was_made_here_is_not_judged(scene: Scene) -> None:
    scene.made_here = True
    plan = plan_of(scene, with_devices(scene.point(memory=False), SERIAL))
    assert not any("TRUSTED" in line for line in plan.lines)
    assert plan.operation.firmware_dirs is None


def test_what_the_guest_has_here_already_is_nothing_new(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of points of older versions, which have no seal."""
    point = with_devices(scene.point(memory=False), SERIAL)
    plain = Machine.xml_of

    def equipped(machine: Machine, *arguments: object, **options: object) -> str:
        xml = plain(machine, *arguments, **options)  # type: ignore[arg-type]
        return xml.replace("<devices>", f"<devices>{SERIAL}")

    monkeypatch.setattr(Machine, "xml_of", equipped)
    assert plan_of(scene, point)


@pytest.mark.parametrize(
    "path", ["/etc/cron.d/x", "{}/nvram/db_VARS.fd", "{}/nvram/../web_VARS.fd"]
)
def test_firmware_variables_of_another_place(scene: Scene, tmp_path: Path, path: str) -> None:
    boot = f"<os><nvram>{path.format(tmp_path)}</nvram></os>"
    with pytest.raises(RestoreImpossible, match="firmware variables: file "):
        plan_of(scene, with_devices(scene.point(memory=False), "", boot))


def test_firmware_variables_where_libvirt_has_them(scene: Scene, tmp_path: Path) -> None:
    own = tmp_path / "nvram" / "web_VARS.fd"
    point = with_devices(scene.point(memory=False), "", f"<os><nvram>{own}</nvram></os>")
    (point.directory / NVRAM).write_bytes(b"variables")
    put_back(scene, point, COLD)
    assert own.read_bytes() == b"variables"


def image_of(point: RestorePoint) -> Header | None:
    memory = point.manifest.memory
    return memory_image.check(point.directory / memory.file, memory) if memory else None


def test_the_definition_inside_of_the_ram_counts_too(scene: Scene) -> None:
    """It is what libvirt starts the guest by; that beside it may say anything."""
    original = scene.guest.xml_of

    def hostile(*arguments: object, **options: object) -> str:
        xml = original(*arguments, **options)  # type: ignore[arg-type]
        return xml.replace("<devices>", f"<devices>{SERIAL}")

    scene.guest.xml_of = hostile  # type: ignore[method-assign]
    point = scene.point()
    scene.guest.xml_of = original  # type: ignore[method-assign]
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace(SERIAL, ""))
    with pytest.raises(RestoreImpossible, match=r"file /etc/cron.d/x"):
        put_back(scene, point, RestoreOptions(), image_of(point))


@pytest.mark.parametrize("tag", ["uuid", "name"])
def test_the_definition_of_another_guest(scene: Scene, tag: str) -> None:
    """By which that one would be defined anew."""
    scene.made_here = True
    point = scene.point(memory=False)
    path = point.directory / PERSISTENT_XML
    text = path.read_text()
    end = text.index(f"</{tag}>")
    path.write_text(f"{text[: end - 1]}9{text[end:]}")
    with pytest.raises(RestoreImpossible, match="is of another guest than its manifest says"):
        plan_of(scene, point)


def test_an_image_of_the_snapshot_that_leads_out(scene: Scene, tmp_path: Path) -> None:
    """Only when the datasets are there it can be seen; then all is undone."""
    shadow = tmp_path / "shadow"
    shadow.write_bytes(b"secrets")
    image = Path(scene.world.disk_of(DATASET)).with_name("x.iso")
    image.symlink_to(shadow)
    drive = f"<source file='{image}'/><target dev='sda'/><readonly/>"
    point = scene.point(memory=False)
    with_devices(point, f"<disk type='file' device='cdrom'>{drive}</disk>")
    with pytest.raises(
        RestoreFailed, match=r"is none of the guest's own: .* is a symlink.*--trust"
    ):
        put_back(scene, point, COLD)
    assert shadow.read_bytes() == b"secrets"
    assert list(scene.world.pool) == ["tank", DATASET]
    assert scene.world.pool[DATASET].content.startswith(NEW)  # the guest runs on
    assert plan_of(scene, point, TRUST).operation.firmware_dirs is None


def seen(scene: Scene, dataset: str, files: dict[str, bytes]) -> None:
    """The files of a snapshot, where ZFS shows them."""
    directory = Path(scene.world.disk_of(dataset)).parent / ".zfs" / "snapshot" / NAME
    directory.mkdir(parents=True)
    for name, head in files.items():
        (directory / name).write_bytes(head)


@pytest.mark.parametrize(
    ("head", "name"),
    [(image(b"/etc/shadow"), "/etc/shadow"), (image(data_file=b"../db/vda.raw"), "db/vda.raw")],
)
def test_nothing_is_stopped_for_an_image_that_names_others(
    scene: Scene, head: bytes, name: str
) -> None:
    point = scene.point(memory=False)
    seen(scene, DATASET, {"vda.raw": head})
    with pytest.raises(RestoreImpossible) as raised:
        plan_of(scene, point)
    (line,) = str(raised.value).splitlines()
    assert "was not made on this host" in line
    assert name.rpartition("/")[0] in line
    assert line.endswith("say --trust")
    assert scene.world.acts == []
    assert plan_of(scene, point, TRUST)


def test_images_in_the_snapshot_that_name_their_own(scene: Scene) -> None:
    point = scene.point(memory=False)
    seen(scene, DATASET, {"vda.raw": image(b"base.qcow2"), "base.qcow2": image()})
    assert plan_of(scene, point)


@pytest.mark.parametrize("rollback", [True, False])
def test_a_rollback_needs_trust(scene: Scene, rollback: bool) -> None:
    """What images in volumes name is seen when it cannot be undone any more."""
    point = scene.point(memory=False)
    if not rollback:
        assert plan_of(scene, point)
        return
    with pytest.raises(RestoreImpossible) as raised:
        plan_of(scene, point, RestoreOptions(cold=True, rollback=True))
    (line,) = str(raised.value).splitlines()
    assert "a rollback cannot be undone" in line
    assert line.endswith("restore without --rollback, or say --trust")
    options = RestoreOptions(cold=True, rollback=True, trust=True)
    assert plan_of(scene, point, options).operation.rollback


def test_what_was_just_fetched_is_rolled_back_without_trust(scene: Scene) -> None:
    """There is no guest that would stay off; and its images are looked at all the same."""
    point = scene.point(memory=False)
    scene.guest.active = False
    options = RestoreOptions(cold=True, rollback=True, safety=False)
    assert plan_of(scene, point, options).operation.rollback
    seen(scene, DATASET, {"vda.raw": image(b"/etc/shadow")})
    with pytest.raises(RestoreImpossible, match=r"/etc is outside of what it may be in; .*--trust"):
        plan_of(scene, point, options)
    scene.world.snap(f"{DATASET}@newer")
    with pytest.raises(RestoreImpossible, match="a rollback cannot be undone"):
        plan_of(scene, point, options)


@pytest.mark.parametrize("rollback", [True, False])
def test_volumes_that_were_just_fetched_are_looked_at(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    rollback: bool,
) -> None:
    """They are what they are rolled back to; otherwise those of now say nothing of the point."""
    scene = set_scene(config, tmp_path / "volumes", manifest, monkeypatch, "volume")
    scene.made_here = scene.guest.active = False
    looked_at: list[str] = []
    monkeypatch.setattr(own_images, "_check_volume", looked_at.append)
    point = scene.point(memory=False)
    plan_of(scene, point, RestoreOptions(cold=True, rollback=rollback, safety=False))
    assert set(looked_at) == ({scene.world.disk_of(DATASET)} if rollback else set())


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_data_file_in_a_dataset_that_has_no_disk(scene: Scene, is_seen: bool) -> None:
    """It is the guest's, before the datasets are restored and after that."""
    data = "tank/data"
    scene.world.add(data, OLD)
    taken = scene.world.snap(f"{data}@{NAME}")
    root = Path(scene.world.disk_of(DATASET)).parent
    head = image(data_file=b"../data/vda.raw")
    (root / "vda.raw").write_bytes(head)
    if is_seen:
        seen(scene, DATASET, {"vda.raw": head})
        seen(scene, data, {"vda.raw": b"raw"})
    refs = tuple(
        SnapshotRef(each.dataset, NAME, each.guid, each.createtxg)
        for each in (scene.snapshot, taken)
    )
    place = str(Path(scene.world.disk_of(data)))
    state = OtherState("data file of vda", place, data, "vda.raw")
    point = scene.point(memory=False, snapshots=refs, other_state=(state,))
    put_back(scene, point, COLD)
    assert scene.world.pool[DATASET].content.startswith(OLD)


def test_a_definition_that_is_changed_after_it_was_looked_at(scene: Scene) -> None:
    """By the user as whom points are sent to this vault."""
    point = scene.point(memory=False)
    plan = plan_of(scene, point)
    with_devices(point, SERIAL)
    with pytest.raises(RestoreFailed, match="its definition was changed meanwhile"):
        InPlaceRestore(scene.config, scene.host, plan.operation).run()
    assert list(scene.world.pool) == ["tank", DATASET]
    assert scene.world.pool[DATASET].content.startswith(NEW)
