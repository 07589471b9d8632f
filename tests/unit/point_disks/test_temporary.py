from collections.abc import Callable

import pytest

from tests.fakes.restore_scene import DATASET, NAME
from tests.unit.point_disks.conftest import KEY, Case
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.point_disks import temporary
from zvmsnap.zfs import branches, volume

MARK = {"zvmsnap:temporary": KEY}
NAMES = ("tank/a", "tank/b", "tank/c")


@pytest.fixture
def case(make: Callable[..., Case]) -> Case:
    case = make()
    case.world.clone(f"{DATASET}@{NAME}", "tank/a", MARK)
    return case


def test_only_what_bears_the_mark_goes(case: Case) -> None:
    case.world.clone(f"{DATASET}@{NAME}", "tank/b", {"zvmsnap:temporary": "of others"})
    temporary.remove(NAMES, KEY)
    assert list(case.world.pool) == ["tank", DATASET, "tank/b"]
    temporary.remove(NAMES, KEY)
    temporary.remove((), KEY)


def test_with_snapshots_that_others_took_meanwhile(case: Case) -> None:
    case.world.snap("tank/a@hourly")
    temporary.remove(NAMES, KEY)
    assert list(case.world.pool) == ["tank", DATASET]


def test_what_cannot_be_destroyed_is_told(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_RELEASED_WITHIN_S", 0)
    case.world.errors = {(len(case.world.acts), "before")}
    with pytest.raises(ZfsFailed) as told:
        temporary.remove(NAMES, KEY)
    assert "tank/a" in case.world.pool and "LVM" not in str(told.value)
    case.world.errors = {(len(case.world.acts), "before")}
    monkeypatch.setattr(volume, "held_by", lambda dataset: ["data-files", "data-root"])
    with pytest.raises(ZfsFailed, match="has it open itself, as data-files, data-root: deact"):
        temporary.remove(NAMES, KEY)
