from pathlib import Path

import msgspec
import pytest

from tests.fakes.clone_scene import make, nothing_left
from tests.fakes.restore_scene import DATASET, NAME, OLD, Killed, Scene
from zvmsnap.clone import datasets
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.destroy import CLONE_PROPERTY, destroy_clone
from zvmsnap.clone.domain_xml import cloned_from
from zvmsnap.clone.plan import CloneOptions
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.journal.operation import CloneOperation
from zvmsnap.points import definition, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    NVRAM,
    PERSISTENT_XML,
    TPM,
    Disk,
    SnapshotRef,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.retention import old_memory
from zvmsnap.retention.keep_memory import REMOVED
from zvmsnap.virt import domain_xml, tpm_state

STEPS = ["datasets", "disks", "image", "firmware", "define", "load", "check", "resume", "close"]


@pytest.mark.parametrize(
    ("options", "stored", "steps", "state"),
    [
        pytest.param(CloneOptions("w2"), {}, STEPS, "running", id="RAM"),
        pytest.param(CloneOptions("w2"), {"plain": True}, STEPS, "running", id="plain"),
        pytest.param(CloneOptions("w2"), {"zstd": True}, STEPS, "running", id="zstd"),
        pytest.param(CloneOptions("w2", paused=True), {}, STEPS, "paused", id="paused"),
        pytest.param(
            CloneOptions("w2", cold=True),
            {},
            [step for step in STEPS if step != "image"],
            "running",
            id="cold",
        ),
        pytest.param(
            CloneOptions("w2"),
            {"memory": False},
            [s for s in STEPS if s != "image"],
            "running",
            id="no RAM",
        ),
    ],
)
def test_clone(
    scene: Scene, options: CloneOptions, stored: dict[str, bool], steps: list[str], state: str
) -> None:
    point = scene.point(**stored)
    files = {path.name: path.read_bytes() for path in point.directory.iterdir()}
    before = scene.world.summary()
    operation = make(scene, point, options)
    assert scene.trace == steps
    guest = scene.find(operation.uuid)
    assert guest and (guest.name, guest.state()) == ("w2", state)
    assert cloned_from(guest.xml()) == point.name
    assert scene.world.pool["tank/w2"].content == (OLD if state == "paused" else f"{OLD}+")
    assert scene.world.pool["tank/w2"].properties == {CLONE_PROPERTY: "w2"}
    assert scene.world.loaded == ([OLD] if "image" in steps else [])
    assert scene.world.mismatches == []
    # Nothing of the original has changed; nor of the point.
    assert {name: scene.world.summary()[name] for name in before} == before
    assert {path.name: path.read_bytes() for path in point.directory.iterdir()} == files
    assert scene.guest.calls == []
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert nothing_left(scene)


def acts_of(scene: Scene, point: RestorePoint) -> list[str]:
    make(scene, point)
    destroy_clone(scene.host, "w2")
    acts = scene.world.acts[:]
    return acts[: acts.index("destroy")]


@pytest.mark.parametrize("dies", [True, False], ids=["death", "failure"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_trouble_at_each_act_leaves_nothing(scene: Scene, when: str, dies: bool) -> None:
    point = scene.point()
    for number, act in enumerate(acts_of(scene, point)):
        scene.world.acts.clear()
        if dies:
            scene.world.death = (number, when)
        else:
            scene.world.errors = {(number, when)}
        with pytest.raises(Killed if dies else RestoreFailed):
            make(scene, point)
        scene.world.disarm()
        for operation in scene.operations():
            assert dies, act
            assert isinstance(operation, CloneOperation)
            CloneCreation(scene.config, scene.host, operation).discard()
        assert nothing_left(scene), act


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_could_not_be_undone_is_tried_again(scene: Scene, when: str) -> None:
    point = scene.point()
    resume = acts_of(scene, point).index("resume")

    def fail(*numbers: int) -> None:
        scene.world.acts.clear()
        scene.world.errors = {(resume, "before")} | {(number, when) for number in numbers}
        with pytest.raises(RestoreFailed, match="w2 was not made: resume: resume: failed here"):
            make(scene, point)
        scene.world.disarm()

    fail()
    undoing = scene.world.acts[resume + 1 :]
    assert {"destroy", "undefine", "zfs destroy"} <= set(undoing)
    for number, act in enumerate(undoing, resume + 1):
        # Until its limit runs out, a dataset that cannot be destroyed is tried again at once.
        tries = 99 if act == "zfs destroy" else 1
        fail(*range(number, number + tries))
        assert bool(scene.operations()) != act.startswith("write"), act
        for operation in scene.operations():
            assert isinstance(operation, CloneOperation)
            CloneCreation(scene.config, scene.host, operation).discard()
        assert nothing_left(scene), act


@pytest.mark.parametrize("force", [False, True])
def test_keep_memory_takes_no_ram_from_a_clone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Where it is taken all the same, the clone says so, and is not made."""
    point = scene.point()
    make_datasets = datasets.make

    def overtaken(operation: CloneOperation) -> None:
        make_datasets(operation)
        assert old_memory.remove(scene.config, [point]) == []
        if force:
            vault.rewrite(point, point.manifest.without_memory(REMOVED))
            vault.remove_files(point.directory, point.memory.files)

    monkeypatch.setattr(datasets, "make", overtaken)
    if not force:
        make(scene, point)
        return
    with pytest.raises(RestoreFailed, match=f"image: .*has no RAM: {REMOVED}"):
        make(scene, point)
    assert nothing_left(scene)


def test_discard_that_fails_says_what_is_left(scene: Scene) -> None:
    point = scene.point()
    scene.world.acts.clear()
    operation = msgspec.structs.replace(make(scene, point), step="load")
    creation = CloneCreation(scene.config, scene.host, operation)
    scene.world.errors = {(number, "before") for number in range(200)}
    with pytest.raises(
        RestoreFailed, match="w2: could not be removed: load: destroy: failed here; "
    ):
        creation.discard()
    scene.world.disarm()
    creation.discard()
    assert nothing_left(scene)


def test_unmounted_origin_is_mounted_where_it_can_be_reached(scene: Scene, tmp_path: Path) -> None:
    point = scene.point()
    inherited = scene.world._mountpoint

    def mountpoint(name: str) -> str:
        own = scene.world.pool[name].properties.get("mountpoint", "none")
        return own if name == "tank/w2" else inherited(name)

    scene.world._mountpoint = mountpoint  # type: ignore[method-assign]
    place = tmp_path / "clones" / "tank" / "w2"
    operation = make(scene, point)
    guest = scene.find(operation.uuid)
    assert guest and str(place / "vda.raw") in guest.xml()


def test_two_disks_of_which_each_finds_its_own(scene: Scene) -> None:
    scene.world.add("tank/web/db", "data")
    second = scene.world.snap(f"tank/web/db@{NAME}")
    scene.guest.live["vdb"] = scene.guest.persistent["vdb"] = scene.world.disk_of("tank/web/db")
    first = scene.snapshot
    references = (
        SnapshotRef(DATASET, NAME, first.guid, first.createtxg),
        SnapshotRef("tank/web/db", NAME, second.guid, second.createtxg),
    )
    disks = (
        Disk("vdb", "file", "raw", scene.guest.live["vdb"], "tank/web/db", "vda.raw"),
        Disk("vda", "file", "raw", scene.guest.live["vda"], DATASET, "vda.raw"),
    )
    operation = make(scene, scene.point(memory=False, snapshots=references, disks=disks))
    guest = scene.find(operation.uuid)
    assert guest
    assert {disk.target: disk.source for disk in domain_xml.parse(guest.xml()).disks} == {
        "vda": scene.world.disk_of("tank/w2"),
        "vdb": scene.world.disk_of("tank/w2/db"),
    }
    assert destroy_clone(scene.host, "w2") == ["tank/w2", "tank/w2/db"]
    assert list(scene.world.pool) == ["tank", DATASET, "tank/web/db"]


def test_clone_has_the_properties_of_its_origin_that_fit_it(scene: Scene) -> None:
    kept = {"volmode": "dev", "compression": "zstd", "primarycache": "metadata"}
    scene.dataset.properties |= kept | {
        "canmount": "noauto",
        "refquota": "1G",
        "refreservation": "1G",
        "readonly": "on",
        "sharenfs": "on",
        "autobackup:offsite1": "true",
        "syncoid:sync": "true",
        "com.sun:auto-snapshot": "true",
        "zvmsnap:mode": "memory",
    }
    make(scene, scene.point())
    assert scene.world.pool["tank/w2"].properties == kept | {CLONE_PROPERTY: "w2"}


@pytest.mark.parametrize("step", ["load", "resume", "undo firmware", "close"])
@pytest.mark.parametrize("memory", [True, False])
def test_discard_when_the_point_is_gone(scene: Scene, step: str, memory: bool) -> None:
    point = scene.point(memory=memory)
    operation = msgspec.structs.replace(make(scene, point), step=step)
    vault.remove(point)
    CloneCreation(scene.config, scene.host, operation).discard()
    assert list(scene.world.pool) == ["tank", DATASET]
    assert [guest.name for guest in scene.host.guests()] == ["web"]
    assert (scene.operations(), scene.staged()) == ([], [])


def test_firmware_variables_go_though_the_point_is_gone(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "NVRAM_DIR", tmp_path)
    own = tmp_path / "w2_VARS.fd"
    point = scene.point()
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        nvram = "<os><nvram>/etc/zvmsnap/x</nvram></os><devices>"
        path.write_text(path.read_text().replace("<devices>", nvram))
    (point.directory / NVRAM).write_bytes(b"variables")
    operation = msgspec.structs.replace(make(scene, point), step="load")
    assert own.read_bytes() == b"variables"
    vault.remove(point)
    CloneCreation(scene.config, scene.host, operation).discard()
    assert not own.exists()


def test_state_of_a_tpm_in_a_file(scene: Scene) -> None:
    """It is in the original's dataset, and so in the clone's."""
    state = Path(scene.world.disk_of(DATASET)).with_name("tpm.state")
    own = Path(str(state).replace("tank/web", "tank/w2"))
    own.parent.mkdir(parents=True)
    own.write_bytes(b"between")
    state.write_bytes(b"of the point")
    point = scene.point()
    source = f"<source type='file' path='{state}'/>"
    tpm = f"<tpm><backend type='emulator' version='2.0'>{source}</backend></tpm></devices>"
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace("</devices>", tpm))
    archive = tpm_state.archive((point.directory / DOMAIN_XML).read_text(), "")
    assert archive
    (point.directory / TPM).write_bytes(archive)
    state.write_bytes(b"now")
    make(scene, point, CloneOptions("w2", cold=True))
    assert (state.read_bytes(), own.read_bytes()) == (b"now", b"of the point")
