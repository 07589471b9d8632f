"""One restore in place, which a test strikes by failures and death."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.fakes.restore_scene import DATASET, NAME, NEW, OLD, Killed, Scene
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import RestoreOperation
from zvmsnap.points import memory_image, vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore import in_place
from zvmsnap.restore.in_place import InPlaceRestore
from zvmsnap.restore.plan import RestoreOptions, RestoreRequest, plan_restore
from zvmsnap.virt.guest import Pause
from zvmsnap.virt.save_image import Header

PLAIN = RestoreOptions()


@dataclass
class Kind:
    """What is restored, and how."""

    options: RestoreOptions = PLAIN
    guest: str = "running"
    memory: bool = True
    zstd: bool = False
    plain: bool = False
    level: ConsistencyLevel | None = None
    volume: bool = False


Make = Callable[[Kind], "Case"]


def put_back(
    scene: Scene,
    point: RestorePoint,
    options: RestoreOptions = PLAIN,
    image: Header | None = None,
    cancelled: threading.Event | None = None,
) -> None:
    """Plan a restore, and carry it out."""
    plan = plan_restore(scene.config, scene.host, RestoreRequest(point, options, image))
    in_place.restore(scene.config, scene.host, plan, cancelled or threading.Event())


class Case:
    """One restore; `again` is what another process does after this one has died."""

    def __init__(self, scene: Scene, kind: Kind) -> None:
        self.scene, self.world, self.kind = scene, scene.world, kind
        self.guest = scene.guest
        level = kind.level or (ConsistencyLevel.MEMORY if kind.memory else ConsistencyLevel.CRASH)
        self.point = scene.point(memory=kind.memory, zstd=kind.zstd, plain=kind.plain, level=level)
        if kind.guest in ("off", "undefined", "transient"):
            self.guest.active = kind.guest == "transient"
            self.guest.is_defined = kind.guest == "off"
            self.guest.exists = kind.guest != "undefined"
        if kind.guest == "paused":
            self.guest.paused_because = Pause.USER
        self.before = self.world.summary()
        self.world.acts.clear()

    def run(self) -> None:
        memory = None if self.kind.options.cold else self.point.manifest.memory
        image = memory_image.check(self.point.directory / memory.file, memory) if memory else None
        put_back(self.scene, self.point, self.kind.options, image)

    def again(self) -> bool:
        """Go on in a new process; False if there was nothing to do, or it failed."""
        self.world.disarm()
        operations = self.scene.operations()
        for operation in operations:
            assert isinstance(operation, RestoreOperation)
            try:
                InPlaceRestore(self.scene.config, self.scene.host, operation).go_on()
            except RestoreFailed:
                return False
        return bool(operations)

    def content(self) -> str:
        return self.world.pool[DATASET].content

    def is_back(self) -> bool:
        """Is the point restored?"""
        return self.content().startswith(OLD)

    def check_clean(self) -> None:
        """Nothing is left of the work, and no RAM met disks that it does not fit."""
        assert self.world.mismatches == []
        assert self.scene.operations() == []
        assert self.scene.staged() == []
        assert not any(".zvmsnap-" in name for name in self.world.pool)
        assert Journal(self.scene.config.journal_dir).entries() == []

    def check_replaced(self) -> None:
        """All is as it was, but for what the guest has written since."""
        shape = self.world.summary()
        assert shape.keys() == self.before.keys()
        for name, (content, *rest) in shape.items():
            assert content.rstrip("+") == self.before[name][0]
            assert tuple(rest) == self.before[name][1:]

    def points(self) -> list[RestorePoint]:
        entries = vault.entries(self.scene.config.vault_dir)
        return [
            point
            for point in entries
            if isinstance(point, RestorePoint) and point.name != self.name
        ]

    @property
    def name(self) -> str:
        return self.point.name


def check_one_of_both(case: Case) -> None:
    """Either the point is back, or all is as it was: never half of both."""
    case.check_clean()
    guest = case.scene.find()
    if case.is_back():
        assert guest and guest.state() == "running"
        assert case.world.summary()[DATASET][3] == [NAME]
        return
    case.check_replaced()
    assert case.points() == []
    if case.kind.guest == "undefined":
        assert guest is None
        return
    state = {"off": "shut off", "paused": "paused"}.get(case.kind.guest, "running")
    assert guest and guest.state() == state
    assert case.world.loaded.count(NEW) <= 1


def acts_of(make: Make, kind: Kind) -> list[str]:
    case = make(kind)
    case.run()
    return case.world.acts


def undoing(make: Make, kind: Kind) -> tuple[int, list[str]]:
    """The number of the act `load`, and the acts when that fails and all is undone."""
    number = acts_of(make, kind).index("load")
    case = make(kind)
    case.world.errors = {(number, "before")}
    with pytest.raises(RestoreFailed):
        case.run()
    return number, case.world.acts


def died_at(make: Make, kind: Kind, act: str, when: str = "before") -> Case:
    """A restore whose process died at the first act of that name."""
    number = acts_of(make, kind).index(act)
    case = make(kind)
    case.world.death = (number, when)
    with pytest.raises(Killed):
        case.run()
    case.world.disarm()
    return case
