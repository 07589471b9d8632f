from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.capture import eligibility
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks.location import GuestDisks
from zvmsnap.journal.round import Expected
from zvmsnap.virt.domain_xml import Disk, Domain
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Dataset

INSIDE, OUTSIDE = DiskLocation("tank/web", "a.qcow2"), DiskLocation("other/web", "b.qcow2")
COVERED = frozenset({"tank/web", "tank/web/data"})


def disk(target: str = "vda", **changes: object) -> Disk:
    known: dict[str, object] = {
        "device": "disk",
        "type": "file",
        "source": f"/images/{target}",
        "format": "qcow2",
        "readonly": False,
        "shareable": False,
        "transient": False,
    }
    return Disk(target=target, **{**known, **changes})  # type: ignore[arg-type]


def located(state: str, disks: tuple[Disk, ...], places: Mapping[str, DiskLocation]) -> GuestDisks:
    domain = Domain("web", "uuid", disks, None, "q35", "x86_64", "/qemu", "", "", 1024)
    return GuestDisks(domain, state, places)


def dataset(name: str, mode: str = "", recursive: str = "") -> Dataset:
    return Dataset(name, "filesystem", compressed=False, mode=mode, recursive=recursive)


TWO = (disk("vda"), disk("vdb"))
BOTH_INSIDE = {"vda": INSIDE, "vdb": DiskLocation("tank/web/data", "")}
SPLIT = {"vda": INSIDE, "vdb": OUTSIDE}

LEVELS = [
    pytest.param(
        "running",
        (disk(),),
        {"vda": INSIDE},
        ConsistencyLevel.MEMORY,
        None,
        ("vda",),
        (),
        id="one disk",
    ),
    pytest.param(
        "running",
        TWO,
        BOTH_INSIDE,
        ConsistencyLevel.MEMORY,
        None,
        ("vda", "vdb"),
        (),
        id="two datasets",
    ),
    pytest.param(
        "running",
        TWO,
        SPLIT,
        ConsistencyLevel.CRASH,
        "not all disks are in this snapshot: vdb (on other/web)",
        ("vda",),
        ("vdb",),
        id="one disk elsewhere on ZFS",
    ),
    pytest.param(
        "running",
        TWO,
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "not all disks are in this snapshot: vdb (/images/vdb)",
        ("vda",),
        ("vdb",),
        id="one disk on no ZFS",
    ),
    pytest.param(
        "running",
        (disk(), disk("vdb", type="network", source="")),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "not all disks are in this snapshot: vdb (of type network)",
        ("vda",),
        ("vdb",),
        id="network disk",
    ),
    pytest.param(
        "running",
        (disk(type="volume", source="", volume=("pool", "a")),),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "a disk cannot be frozen: vda is of type volume, not a file or block device",
        ("vda",),
        (),
        id="volume of a storage pool",
    ),
    pytest.param(
        "running",
        (disk(shareable=True),),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "a disk cannot be frozen: vda is shareable",
        ("vda",),
        (),
        id="shareable",
    ),
    pytest.param(
        "running",
        (disk(encrypted=True),),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "a disk cannot be frozen: vda is encrypted (LUKS): an overlay would hold its data in clear "
        "text",
        ("vda",),
        (),
        id="LUKS",
    ),
    pytest.param(
        "running",
        (disk(transient=True),),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "its RAM cannot be saved because vda is transient",
        ("vda",),
        (),
        id="transient",
    ),
    pytest.param(
        "running",
        (disk(device="lun", type="block"),),
        {"vda": INSIDE},
        ConsistencyLevel.CRASH,
        "a disk cannot be frozen: vda is a passed-through LUN",
        ("vda",),
        (),
        id="LUN",
    ),
    pytest.param(
        "running",
        (disk(), disk("sda", device="cdrom", readonly=True), disk("sdb", device="cdrom")),
        {"vda": INSIDE, "sda": OUTSIDE},
        ConsistencyLevel.MEMORY,
        None,
        ("vda",),
        ("sda", "sdb"),
        id="cdroms count for nothing",
    ),
    pytest.param(
        "running",
        (disk(), disk("vdb", readonly=True)),
        SPLIT,
        ConsistencyLevel.MEMORY,
        None,
        ("vda",),
        ("vdb",),
        id="readonly disk elsewhere",
    ),
    pytest.param(
        "running",
        (disk(), disk("vdb", readonly=True)),
        BOTH_INSIDE,
        ConsistencyLevel.MEMORY,
        None,
        ("vda",),
        ("vdb",),
        id="readonly disk inside gets no overlay",
    ),
    pytest.param(
        "paused",
        TWO,
        BOTH_INSIDE,
        ConsistencyLevel.CRASH,
        "the guest is paused",
        ("vda", "vdb"),
        (),
        id="paused",
    ),
    pytest.param(
        "shutting down",
        TWO,
        BOTH_INSIDE,
        ConsistencyLevel.CRASH,
        "the guest is shutting down",
        ("vda", "vdb"),
        (),
        id="shutting down",
    ),
    pytest.param(
        "shut off",
        TWO,
        BOTH_INSIDE,
        ConsistencyLevel.OFFLINE,
        "the guest is shut off",
        ("vda", "vdb"),
        (),
        id="off",
    ),
    pytest.param(
        "crashed",
        TWO,
        SPLIT,
        ConsistencyLevel.OFFLINE,
        "the guest is crashed",
        ("vda",),
        ("vdb",),
        id="crashed, one disk elsewhere",
    ),
]


def best(eligible: Eligibility) -> tuple[ConsistencyLevel, str | None]:
    """Of memory, what can be had, and why not more."""
    why = eligible.obstacles.get(ConsistencyLevel.MEMORY)
    level = (
        ConsistencyLevel.OFFLINE
        if eligible.is_off
        else ConsistencyLevel.CRASH
        if why
        else ConsistencyLevel.MEMORY
    )
    return level, why


@pytest.mark.parametrize(
    ("state", "disks", "places", "level", "reason", "covered", "others"), LEVELS
)
def test_level(
    state: str,
    disks: tuple[Disk, ...],
    places: Mapping[str, DiskLocation],
    level: ConsistencyLevel,
    reason: str | None,
    covered: tuple[str, ...],
    others: tuple[str, ...],
) -> None:
    eligible = eligibility.assess(located(state, disks, places), COVERED)
    assert eligible is not None
    assert best(eligible) == (level, reason)
    assert eligible.covered == {target: places[target] for target in covered}
    assert eligible.others == others
    assert eligible.datasets == tuple(sorted({places[target].dataset for target in covered}))


@pytest.mark.parametrize(
    ("disks", "places"),
    [
        pytest.param((), {}, id="no disk"),
        pytest.param((disk(),), {}, id="no ZFS"),
        pytest.param((disk(),), {"vda": OUTSIDE}, id="another dataset"),
        pytest.param((disk(),), {"vda": DiskLocation("tank/webs", "a")}, id="a longer name"),
        pytest.param((disk("sda", device="cdrom"),), {"sda": INSIDE}, id="only a cdrom inside"),
        pytest.param((disk(readonly=True),), {"vda": INSIDE}, id="only a readonly disk inside"),
    ],
)
@pytest.mark.parametrize("state", ["running", "paused", "shut off"])
def test_not_concerned(
    disks: tuple[Disk, ...], places: Mapping[str, DiskLocation], state: str
) -> None:
    assert eligibility.assess(located(state, disks, places), COVERED) is None


DISKS = st.builds(
    disk,
    device=st.sampled_from(["disk", "cdrom", "floppy", "lun"]),
    source=st.sampled_from(["", "/images/x"]),
    readonly=st.booleans(),
    shareable=st.booleans(),
    transient=st.booleans(),
)
PLACED_DISKS = st.lists(st.tuples(DISKS, st.sampled_from([INSIDE, OUTSIDE, None])), max_size=4)


@given(st.sampled_from(["running", "paused", "shut off"]), PLACED_DISKS)
def test_ram_only_where_every_writable_disk_is_frozen_in_the_same_snapshot(
    state: str, drawn: list[tuple[Disk, DiskLocation | None]]
) -> None:
    targets = [f"vd{letter}" for letter in "abcd"[: len(drawn)]]
    renamed = [
        disk(target, **{key: getattr(one, key) for key in vars(one) if key != "target"})
        for target, (one, _) in zip(targets, drawn, strict=True)
    ]
    places = {target: at for target, (_, at) in zip(targets, drawn, strict=True) if at}
    eligible = eligibility.assess(located(state, tuple(renamed), places), COVERED)
    if eligible is None:
        assert not any(one.writable and places.get(one.target) == INSIDE for one in renamed)
        return
    assert sorted((*eligible.covered, *eligible.others)) == targets
    if best(eligible)[0] is ConsistencyLevel.MEMORY:
        assert state == "running"
        for one in renamed:
            frozen = one.target in eligible.covered
            assert frozen == one.writable
            assert not frozen or (one.source and not (one.shareable or one.transient))


POOL = ("tank", "tank/web", "tank/web/data", "tank/web/data/deep", "tank/webs", "other")


@pytest.mark.parametrize(
    ("targets", "properties", "said", "expected"),
    [
        pytest.param(("tank/web",), {}, {}, {"tank/web"}, id="alone"),
        pytest.param(
            ("tank/web",),
            {},
            {"tank/web": True},
            {"tank/web", "tank/web/data", "tank/web/data/deep"},
            id="recursive = zfs",
        ),
        pytest.param(
            ("tank/web",), {"tank/web": "off"}, {"tank/web": True}, {"tank/web"}, id="property off"
        ),
        pytest.param(
            ("tank/web",),
            {"tank/web": "on"},
            {"tank/web": False},
            {"tank/web", "tank/web/data", "tank/web/data/deep"},
            id="property on",
        ),
        pytest.param(
            ("tank/web",),
            {"tank/web": "yes"},
            {"tank/web": True},
            {"tank/web", "tank/web/data", "tank/web/data/deep"},
            id="property of no meaning",
        ),
        pytest.param(
            ("tank/web",),
            {"tank/web/data": "off"},
            {"tank/web": True},
            {"tank/web", "tank/web/data", "tank/web/data/deep"},
            id="only the target's own property counts",
        ),
        pytest.param(
            ("tank/web/data", "other"),
            {},
            {"tank/web/data": True},
            {"tank/web/data", "tank/web/data/deep", "other"},
            id="two targets",
        ),
        pytest.param(("gone",), {}, {"gone": True}, set(), id="no such dataset"),
    ],
)
def test_snapshotted_datasets(
    targets: tuple[str, ...],
    properties: Mapping[str, str],
    said: Mapping[str, bool],
    expected: set[str],
) -> None:
    datasets = {name: dataset(name, recursive=properties.get(name, "")) for name in POOL}
    recursion = eligibility.recursion(targets, datasets, lambda target: said.get(target, False))
    assert eligibility.snapshotted_datasets(targets, datasets, recursion) == expected


def test_only_of_what_has_datasets_below_it_is_asked_whether_that_is_snapshotted_too() -> None:
    asked: list[str] = []

    def ask(target: str) -> bool:
        asked.append(target)
        return True

    datasets = {name: dataset(name) for name in POOL}
    datasets["tank"] = dataset("tank", recursive="off")
    recursion = eligibility.recursion(("tank/webs", "tank/web", "tank"), datasets, ask)
    assert asked == ["tank/web"]
    assert recursion == {
        "tank/web": Expected(True, "tank/web/data"),
        "tank": Expected(False, "tank/web"),
    }


@pytest.mark.parametrize(
    ("modes", "level"),
    [
        pytest.param({}, ConsistencyLevel.MEMORY, id="none excluded"),
        pytest.param(
            {"tank/web/data": "off"}, ConsistencyLevel.CRASH, id="one disk's dataset excluded"
        ),
        pytest.param({"tank/web/data": "on"}, ConsistencyLevel.MEMORY, id="only off excludes"),
        pytest.param({"tank/web": "off", "tank/web/data": "off"}, None, id="all excluded"),
    ],
)
def test_excluded_datasets(modes: Mapping[str, str], level: ConsistencyLevel | None) -> None:
    datasets = {name: dataset(name, mode=modes.get(name, "")) for name in POOL}
    covered = eligibility.without_excluded(COVERED, datasets)
    eligible = eligibility.assess(located("running", TWO, BOTH_INSIDE), covered)
    assert (eligible and best(eligible)[0]) == level


def test_for_a_backup_a_disk_may_be_on_no_dataset() -> None:
    guest = located("running", TWO, {"vdb": INSIDE})
    both = eligibility.assess_for_backup(guest, {"vda", "vdb"})
    assert ConsistencyLevel.MEMORY not in both.obstacles
    assert set(both.covered) == {"vda", "vdb"} and both.datasets == ("tank/web",)
    one = eligibility.assess_for_backup(guest, {"vda"})
    assert "vdb" in one.obstacles[ConsistencyLevel.MEMORY] and one.others == ("vdb",)
    assert one.datasets == ()
    shared = located("running", (disk("vda", shareable=True), disk("vdb")), {})
    assert eligibility.assess_for_backup(shared, {"vda"}).no_overlay == "vda is shareable"
    assert eligibility.assess_for_backup(shared, {"vdb"}).no_overlay == ""
