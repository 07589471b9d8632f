"""A guest on a snapshot of its user's own: whoever starts it lets it write to what is below.

libvirt before 12.1 denies it in the profile of each guest that it starts.
"""

from collections.abc import Iterable

import msgspec
import pytest

from tests.fakes.guest import UUID
from tests.fakes.restore_case import Case, Kind, Make, acts_of, died_at
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.common.process import Process
from zvmsnap.disks import apparmor
from zvmsnap.journal.operation import Operations
from zvmsnap.restore.plan import RestoreOptions

BELOW = "/images/golden.qcow2"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, frozenset[str]]]:
    """What guests were allowed to write to, after libvirt had denied it."""
    seen: list[tuple[str, frozenset[str]]] = []

    def allow(uuid: str, images: Iterable[str], *_: object) -> bool:
        seen.append((uuid, frozenset(images)))
        return True

    monkeypatch.setattr(apparmor, "denied", lambda _uuid, images, *_: set(images))
    monkeypatch.setattr(apparmor, "allow_writes", allow)
    return seen


def on_a_snapshot(make: Make, kind: Kind) -> Case:
    case = make(kind)
    case.guest.below = {case.guest.live["vda"]: BELOW}
    return case


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Kind(), id="from its RAM"),
        pytest.param(Kind(RestoreOptions(cold=True)), id="cold"),
        pytest.param(Kind(RestoreOptions(rollback=True)), id="rolled back"),
    ],
)
def test_restored(make: Make, kind: Kind, allowed: list[tuple[str, frozenset[str]]]) -> None:
    case = on_a_snapshot(make, kind)
    case.run()
    assert allowed == [(UUID, frozenset({BELOW}))]


@pytest.mark.parametrize("safety", [True, False])
def test_brought_back(make: Make, allowed: list[tuple[str, frozenset[str]]], safety: bool) -> None:
    kind = Kind(RestoreOptions(safety=safety))
    number = acts_of(make, kind).index("load")
    allowed.clear()
    case = on_a_snapshot(make, kind)
    case.world.errors = {(number, "before")}
    with pytest.raises(RestoreFailed):
        case.run()
    assert allowed == [(UUID, frozenset({BELOW}))]


def test_boots_after_the_host_went_down(
    make: Make, allowed: list[tuple[str, frozenset[str]]]
) -> None:
    case = died_at(make, Kind(), "resume", "after")
    (operation,) = case.scene.operations()
    owner = Process(operation.owner.pid, operation.owner.started, "a-boot")
    Operations(case.scene.config.journal_dir).write(msgspec.structs.replace(operation, owner=owner))
    case.guest.shut_off()
    case.guest.below = {case.guest.persistent["vda"]: BELOW}
    allowed.clear()
    assert case.again()
    assert case.guest.state() == "running"
    assert allowed == [(UUID, frozenset({BELOW}))]
