from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.images import holds, make_base, write
from zvmsnap.common.errors import CommitFailed, OverlayUnreadable, QemuImgFailed, ZvmsnapError
from zvmsnap.disks import offline_commit, overlay_chain
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.virt import domain_xml


class Off:
    """A guest that is off on overlays, with two written disks, and a trace of what is done."""

    def __init__(self, tmp_path: Path) -> None:
        self.bases = {name: make_base(tmp_path / "tank" / f"{name}.raw") for name in ("vda", "vdb")}
        self.guest = FakeGuest("web", UUID, **self.bases)
        for number, target in enumerate(self.bases):
            write(self.guest.on_overlay(target, overlay(tmp_path, target)), 7 + number)
        self.guest.shut_off()
        self.trace: list[str] = []

    def chains(self) -> dict[str, OverlayChain]:
        return overlay_chain.of(domain_xml.parse(self.guest.xml()))

    def release_disk(self, target: str, do: Callable[[], None]) -> None:
        self.trace.append(f"released {target}")
        do()

    def step(self, name: str, do: Callable[[], None]) -> None:
        self.trace.append(name)
        do()

    def to_base(self, chains: dict[str, OverlayChain] | None = None) -> None:
        offline_commit.to_base(self.guest, chains or self.chains(), self.release_disk, self.step)

    def merged(self) -> dict[str, bool]:
        return {
            target: holds(base, 7 + number)
            for number, (target, base) in enumerate(self.bases.items())
        }


def overlay(tmp_path: Path, target: str, number: int = 1) -> Path:
    return tmp_path / "staging" / f"{UUID}.{number:08x}" / f"{target}.zvmsnap.qcow2"


@pytest.fixture
def off(tmp_path: Path) -> Off:
    return Off(tmp_path)


ALL = ["merge vda", "merge vdb", "released vda", "released vdb", "redefine"]


def test_all_is_merged_before_anything_is_released(off: Off) -> None:
    overlays = dict(off.guest.persistent)
    off.to_base()
    assert off.trace == ALL
    assert off.merged() == {"vda": True, "vdb": True}
    assert off.guest.persistent == {target: str(base) for target, base in off.bases.items()}
    assert all(Path(path).exists() for path in overlays.values())
    assert off.guest.calls == ["define"]
    assert off.chains() == {}


def test_two_overlays_upon_each_other(off: Off, tmp_path: Path) -> None:
    top = off.guest.on_overlay("vda", overlay(tmp_path, "vda", 2))
    write(top, 9, at_kib=64)
    assert len(off.chains()["vda"].overlays) == 2
    off.to_base()
    assert holds(off.bases["vda"], 7)
    assert holds(off.bases["vda"], 9, at_kib=64)
    assert off.guest.persistent["vda"] == str(off.bases["vda"])


@pytest.mark.parametrize("at", range(len(ALL)))
def test_interrupted_anywhere_and_repeated(off: Off, at: int) -> None:
    class PowerCut(ZvmsnapError):
        pass

    def dies(name: str, do: Callable[[], None]) -> None:
        if len(off.trace) == at:
            raise PowerCut(name)
        off.trace.append(name)
        do()

    with pytest.raises(PowerCut):
        offline_commit.to_base(off.guest, off.chains(), dies, dies)
    assert off.guest.calls == []
    off.trace.clear()
    off.to_base()
    assert off.trace == ALL
    assert off.merged() == {"vda": True, "vdb": True}


def test_started_while_it_is_merged(off: Off) -> None:
    def start(name: str, do: Callable[[], None]) -> None:
        if name == "redefine":
            off.guest.start()
        do()

    before = dict(off.guest.persistent)
    with pytest.raises(CommitFailed, match="web: was started while its overlays were merged"):
        offline_commit.to_base(off.guest, off.chains(), off.release_disk, start)
    assert off.guest.persistent == before


def test_a_problem_with_one_disk_touches_none(off: Off) -> None:
    chains = off.chains()
    chains["vdb"] = OverlayChain("vdb", chains["vdb"].overlays, problem="cannot be read")
    with pytest.raises(CommitFailed, match=r"web: .* vdb: cannot be read"):
        off.to_base(chains)
    assert off.trace == []
    assert off.merged() == {"vda": False, "vdb": False}


def test_base_is_gone(off: Off) -> None:
    chains = off.chains()
    off.bases["vdb"].unlink()
    with pytest.raises((OverlayUnreadable, QemuImgFailed)):
        off.to_base(chains)
    assert off.trace == ["merge vda", "merge vdb"]
    assert off.guest.calls == []


def test_definition_is_never_given_a_base_that_is_not_below_the_overlay(
    off: Off, tmp_path: Path
) -> None:
    chains = off.chains()
    wrong = make_base(tmp_path / "tank" / "wrong.raw")
    chains["vda"] = OverlayChain("vda", chains["vda"].overlays, str(wrong))
    with pytest.raises(OverlayUnreadable, match=f"not on {wrong}"):
        off.to_base(chains)
    assert off.guest.calls == []


def test_ram_that_was_saved_on_overlays_is_loaded_over_the_bases(off: Off) -> None:
    off.guest.saved = off.guest.xml_of(off.guest.persistent)
    off.to_base()
    assert off.guest.calls == ["define", "define saved"]
    saved = domain_xml.parse(off.guest.saved)
    assert {disk.target: (disk.source, disk.format) for disk in saved.disks} == {
        target: (str(base), "raw") for target, base in off.bases.items()
    }
