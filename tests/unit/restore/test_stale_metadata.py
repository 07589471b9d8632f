"""What libvirt keeps of checkpoints and snapshots, when disks come back that do not have them."""

import logging
from datetime import datetime
from pathlib import Path

import pytest

from tests.fakes.images import run_qemu_img
from tests.fakes.restore_case import Case, Kind, Make, acts_of
from tests.fakes.restore_scene import Killed
from zvmsnap.common.errors import QemuImgFailed, RestoreFailed
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import qemu_img
from zvmsnap.restore.plan import RestoreOptions, RestoreRequest, plan_restore
from zvmsnap.virt.domain_xml import Metadata

FULL = "the next backup must be a full one, or from an older checkpoint"


def time_of(case: Case) -> int:
    return int(datetime.fromisoformat(case.point.manifest.created).timestamp())


def checkpoint(case: Case, name: str, after_s: int = -60, **bitmaps: str) -> None:
    """libvirt knows of a checkpoint, made so long after the point."""
    known = Metadata(name, time_of(case) + after_s, bitmaps)
    case.guest.checkpoints.append(known)


def snapshot(case: Case, name: str, after_s: int) -> None:
    case.guest.snapshots.append(name)
    case.guest.snapshots_made_s[name] = time_of(case) + after_s


def names(case: Case) -> list[str]:
    return [each.name for each in case.guest.checkpoints]


def plan_lines(case: Case) -> list[str]:
    request = RestoreRequest(case.point, case.kind.options, None)
    lines = plan_restore(case.scene.config, case.scene.host, request).lines
    return [line.strip() for line in lines if "libvirt forgets" in line]


@pytest.fixture
def bitmaps(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The bitmaps of the disks, by path."""
    by_path: dict[str, set[str]] = {}
    monkeypatch.setattr(qemu_img, "bitmaps", lambda path: frozenset(by_path.get(path, ())))
    return by_path


KINDS = [
    pytest.param(Kind(), id="with RAM"),
    pytest.param(Kind(volume=True), id="on a volume"),
    pytest.param(Kind(RestoreOptions(cold=True)), id="cold"),
    pytest.param(Kind(RestoreOptions(rollback=True)), id="rollback"),
    pytest.param(Kind(guest="off"), id="off"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_disks_do_not_have_is_forgotten(
    make: Make, kind: Kind, bitmaps: dict[str, set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    case = make(kind)
    checkpoint(case, "on the disk", vda="monday")
    checkpoint(case, "gone", vda="tuesday")
    checkpoint(case, "half of it", vda="monday", vdb="monday")
    checkpoint(case, "newer, of an old name", 60, vda="monday")
    checkpoint(case, "of a disk that it has no more", vdz="monday")
    snapshot(case, "older", -60)
    snapshot(case, "newer", 60)
    bitmaps[case.guest.live["vda"]] = {"monday"}
    told = plan_lines(case)
    with caplog.at_level(logging.WARNING):
        case.run()
    case.check_clean()
    assert names(case) == ["on the disk", "half of it"]  # there is no vdb any more
    assert case.guest.snapshots == ["older"]
    assert told == [
        "libvirt forgets its checkpoints newer, of an old name, which are newer",
        "libvirt forgets those of its checkpoints on the disk, gone, half of it, of a disk that it "
        "has no more whose bitmaps the restored disks do not have",
        "libvirt forgets its snapshots newer, which are newer",
    ]
    assert "its checkpoints newer, of an old name, gone, of a disk that it has no more" in (
        caplog.text
    )
    assert FULL in caplog.text
    assert "its snapshots newer, which are newer than the restored disks" in caplog.text


@pytest.mark.parametrize("guest", ["running", "off"])
def test_bitmaps_go_with_their_checkpoints_where_they_can(
    make: Make, bitmaps: dict[str, set[str]], guest: str
) -> None:
    """Else no other checkpoint of that name could be made."""
    level = ConsistencyLevel.OFFLINE if guest == "off" else None
    case = make(Kind(memory=False, level=level, guest=guest))
    checkpoint(case, "in use", vda="monday")
    checkpoint(case, "missing", vda="tuesday")
    case.guest.without_bitmap = {"missing"}
    case.run()
    assert names(case) == []
    done = [call for call in case.guest.calls if "checkpoint" in call]
    assert done == [
        "delete checkpoint in use",
        *(["forget checkpoint in use"] if guest == "off" else []),
        "delete checkpoint missing",
        "forget checkpoint missing",
    ]


def test_nothing_to_forget(make: Make, bitmaps: dict[str, set[str]]) -> None:
    case = make(Kind())
    checkpoint(case, "on the disk", vda="monday")
    bitmaps[case.guest.live["vda"]] = {"monday"}
    case.run()
    assert names(case) == ["on the disk"]
    assert "checkpoints" not in case.scene.trace


def test_a_disk_that_cannot_be_read_has_none(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> frozenset[str]:
        raise QemuImgFailed("no")

    monkeypatch.setattr(qemu_img, "bitmaps", fail)
    case = make(Kind())
    checkpoint(case, "a", vda="a")
    case.run()
    assert names(case) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replaced_guest_that_is_brought_back_has_all(
    make: Make, bitmaps: dict[str, set[str]], when: str
) -> None:
    number = acts_of(make, Kind()).index("load")
    case = make(Kind())
    checkpoint(case, "gone", vda="tuesday")
    snapshot(case, "newer", 60)
    # One act more: what is to be forgotten is written down.
    case.world.errors = {(number + 1, when)}
    with pytest.raises(RestoreFailed):
        case.run()
    case.check_replaced()
    assert (names(case), case.guest.snapshots) == (["gone"], ["newer"])


def test_whoever_goes_on_after_a_crash_forgets_them(
    make: Make, bitmaps: dict[str, set[str]]
) -> None:
    def prepared() -> Case:
        case = make(Kind())
        checkpoint(case, "gone", vda="tuesday")
        snapshot(case, "newer", 60)
        return case

    whole = prepared()
    whole.run()
    acts = whole.world.acts
    assert acts.count("write checkpoints") == 1
    for number in range(acts.index("write definition"), len(acts)):
        for when in ("before", "after"):
            case = prepared()
            case.world.death = (number, when)
            with pytest.raises((Killed, RestoreFailed)):
                case.run()
            while case.again():
                pass
            case.check_clean()
            assert case.is_back(), acts[number]
            assert (names(case), case.guest.snapshots) == ([], []), acts[number]


def test_bitmaps_of_an_image(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    run_qemu_img("create", "-f", "qcow2", image, "1M")
    assert qemu_img.bitmaps(str(image)) == set()
    for name in ("monday", "tuesday"):
        run_qemu_img("bitmap", "--add", image, name)
    assert qemu_img.bitmaps(str(image)) == {"monday", "tuesday"}
    in_use(image)
    assert qemu_img.bitmaps(str(image)) == set()


def in_use(image: Path) -> None:
    """Mark its bitmaps, as a crash of QEMU leaves them (qcow2.txt: bitmap directory, flags)."""
    data = bytearray(image.read_bytes())
    extension = int.from_bytes(data[100:104])
    while True:
        kind, length = (int.from_bytes(data[extension + at : extension + at + 4]) for at in (0, 4))
        if kind == 0x23852875:
            break
        assert kind
        extension += 8 + (length + 7) // 8 * 8
    entry = int.from_bytes(data[extension + 24 : extension + 32])
    count = int.from_bytes(data[extension + 8 : extension + 12])
    for _ in range(count):
        data[entry + 15] |= 1
        extra, name = (
            int.from_bytes(data[entry + 20 : entry + 24]),
            int.from_bytes(data[entry + 18 : entry + 20]),
        )
        entry += (24 + extra + name + 7) // 8 * 8
    image.write_bytes(data)
