import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import (
    BlockJobNotReady,
    CommitFailed,
    DomainGone,
    LibvirtFailed,
    NoAnswer,
)
from zvmsnap.disks import live_commit
from zvmsnap.disks.overlay_chain import OverlayChain

NEVER = 10**9
UUID = "c0ffee00-0000-4000-8000-000000000001"


@dataclass
class Drive:
    """A disk of the fake guest: on its overlay, unless said otherwise.

    `ready_after` counts reads of the XML since the commit began, `drained_after` failed pivots.
    """

    source: str
    chain: list[str]
    persistent: str
    ready_after: int = 1
    drained_after: int = 0
    reads: int | None = None
    vanishes_to: str | None = None
    pivots_to: str | None = None
    start_fails: bool = False
    forgetful: bool = False

    @property
    def mirror(self) -> str:
        if self.reads is None:
            return ""
        ready = " ready='yes'" if self.reads >= self.ready_after else ""
        return f"<mirror type='file' job='active-commit'{ready}/>"


class FakeGuest:
    """Commits and pivots as libvirt does, with what can go wrong on the way."""

    name = "web"
    uuid = UUID

    def __init__(self, **drives: Drive) -> None:
        self.drives = drives
        self.hangs = False
        self.active = True
        self.persistent = True
        self.trace: list[str] = []
        self.dies_at: str | None = None
        self.detached_at: dict[str, str] = {}

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str:
        if not persistent:
            self._advance()
        disks = []
        for target, drive in self.drives.items():
            source = drive.persistent if persistent else drive.source
            chain = ""
            for path in reversed(drive.chain):
                chain = f"<backingStore type='file'><source file={quoteattr(path)}/>{chain}"
                chain += "</backingStore>"
            live = "" if persistent or not self.active else chain + drive.mirror
            disks.append(
                f"<disk type='file' device='disk'><source file={quoteattr(source)}/>{live}"
                f"<target dev='{target}'/></disk>"
            )
        return f"<domain><devices>{''.join(disks)}</devices></domain>"

    def _advance(self) -> None:
        for drive in self.drives.values():
            if drive.reads is None:
                continue
            drive.reads += 1
            if drive.vanishes_to is not None and drive.reads >= drive.ready_after:
                drive.source, drive.reads = drive.vanishes_to, None
                if drive.source in drive.chain:
                    drive.chain, drive.persistent = [], drive.source

    def _do(self, what: str) -> None:
        self.trace.append(what)
        if what in self.detached_at:
            del self.drives[self.detached_at[what]]
        if what == self.dies_at:
            self.active = False
            for drive in self.drives.values():
                drive.reads = None
            raise DomainGone(f"{what}: domain is not running")

    def is_active(self) -> bool:
        return self.active

    def is_persistent(self) -> bool:
        return self.persistent

    def check_answers(self) -> None:
        self.trace.append("asked")
        if self.hangs:
            raise NoAnswer("web: no answer: given up after 45 s")

    def block_commit(self, target: str, base: str) -> None:
        self._do(f"commit {target}")
        if not self.active:
            raise LibvirtFailed(f"commit of {target}: domain is not running", 55)
        if target not in self.drives:
            raise LibvirtFailed(f"commit of {target}: invalid argument: no disk", 8)
        if self.drives[target].start_fails:
            raise LibvirtFailed(f"commit of {target}: Permission denied", 38)
        if base not in self.drives[target].chain:
            raise LibvirtFailed(f"commit of {target}: could not find image '{base}' in chain", 8)
        assert base == self.drives[target].chain[0], "commits into a golden image"
        self.drives[target].reads = 0

    def block_job_pivot(self, target: str) -> None:
        self._do(f"pivot {target}")
        drive = self.drives[target]
        if drive.drained_after > 0:
            drive.drained_after -= 1
            raise BlockJobNotReady(f"pivot of {target}: not ready for pivot yet", 83)
        drive.source = drive.pivots_to or drive.chain.pop(0)
        drive.reads = None
        if not drive.forgetful:
            drive.persistent = drive.source

    @contextmanager
    def block_job_events(self) -> Iterator[threading.Event]:
        self.trace.append("listen")
        yield threading.Event()
        self.trace.append("end listening")


def overlay(target: str) -> str:
    return f"/staging/{UUID}.00000001/{target}.zvmsnap.qcow2"


def base(target: str) -> str:
    return f"/tank/web/{target} & <co>.qcow2"


def frozen(target: str, **changes: object) -> Drive:
    drive = Drive(overlay(target), [base(target), "/golden.qcow2"], overlay(target))
    for key, value in changes.items():
        assert hasattr(drive, key)
        setattr(drive, key, value)
    return drive


def at_base(target: str) -> Drive:
    return Drive(base(target), ["/golden.qcow2"], base(target))


def chains(*targets: str) -> dict[str, OverlayChain]:
    return {target: OverlayChain(target, (overlay(target),), base(target)) for target in targets}


class AppArmor:
    """Notes whose bases it was asked to allow; does so, and answers that it did, or not."""

    def __init__(self, allows: bool = False, on_request: Callable[[], None] = lambda: None) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self._allows = allows
        self._on_request = on_request

    def allow(self, uuid: str, bases: Iterable[str]) -> bool:
        self.asked.append((uuid, sorted(bases)))
        self._on_request()
        return self._allows


def to_base(
    guest: FakeGuest,
    *targets: str,
    timeout_s: float = 60,
    armor: AppArmor | None = None,
) -> None:
    armor = armor or AppArmor()
    live_commit.to_base(guest, chains(*targets or guest.drives), timeout_s, allow=armor.allow)


def work(guest: FakeGuest) -> list[str]:
    return [what for what in guest.trace if what not in ("listen", "end listening")]


ROUNDS = [
    pytest.param(lambda: FakeGuest(vda=frozen("vda")), ["commit vda", "pivot vda"], id="one disk"),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda"), vdb=frozen("vdb"), vdc=frozen("vdc")),
        ["commit vda", "commit vdb", "commit vdc", "pivot vda", "pivot vdb", "pivot vdc"],
        id="all commits begin before the first pivot",
    ),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda", ready_after=9), vdb=frozen("vdb")),
        ["commit vda", "commit vdb", "pivot vda", "pivot vdb"],
        id="a slow commit is waited for",
    ),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda", drained_after=3)),
        ["commit vda", *["pivot vda"] * 4],
        id="code 83: pivot again",
    ),
    pytest.param(lambda: FakeGuest(vda=at_base("vda")), [], id="on its base already"),
    pytest.param(
        lambda: FakeGuest(vda=at_base("vda"), vdb=frozen("vdb")),
        ["commit vdb", "pivot vdb"],
        id="one disk on its base already",
    ),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda", reads=0)), ["pivot vda"], id="running job taken over"
    ),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda", reads=5), vdb=frozen("vdb")),
        ["commit vdb", "pivot vda", "pivot vdb"],
        id="ready job taken over, only after the other commit began",
    ),
    pytest.param(
        lambda: FakeGuest(vda=frozen("vda", ready_after=3, vanishes_to=base("vda"))),
        ["commit vda"],
        id="somebody else pivots",
    ),
]


@pytest.mark.parametrize(("make", "trace"), ROUNDS)
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "transient guest"])
def test_back_on_base(make: Callable[[], FakeGuest], trace: list[str], persistent: bool) -> None:
    guest = make()
    guest.persistent = persistent
    to_base(guest)
    assert work(guest) == trace
    assert (guest.trace[0], guest.trace[-1]) == ("listen", "end listening")
    assert {target: drive.source for target, drive in guest.drives.items()} == {
        target: base(target) for target in guest.drives
    }
    guest.trace.clear()
    to_base(guest)
    assert work(guest) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 3)), max_size=4))
def test_no_pivot_before_the_last_commit_began(disks: list[tuple[bool, int, int]]) -> None:
    guest = FakeGuest()
    for number, (on_overlay, ready_after, drained_after) in enumerate(disks):
        target = f"vd{'abcd'[number]}"
        guest.drives[target] = (
            frozen(target, ready_after=ready_after, drained_after=drained_after)
            if on_overlay
            else at_base(target)
        )
    to_base(guest)
    verbs = [what.split()[0] for what in work(guest)]
    assert verbs == sorted(verbs)
    assert verbs.count("commit") == sum(on_overlay for on_overlay, _, _ in disks)
    assert all(drive.source == base(target) for target, drive in guest.drives.items())


FAULTS = [
    pytest.param(
        {"start_fails": True},
        ["commit vda", "commit vdb", "pivot vdb"],
        ["commit of vda: Permission denied", f"vda is still on {overlay('vda')}"],
        id="commit cannot begin",
    ),
    pytest.param(
        {"vanishes_to": overlay("vda")},
        ["commit vda", "commit vdb", "pivot vdb"],
        ["vda: its commit ended without being ready", "vda is still on"],
        id="job vanishes",
    ),
    pytest.param(
        {"chain": ["/golden.qcow2"]},
        ["commit vda", "commit vdb", "pivot vdb"],
        ["could not find image '/tank/web/vda", "vda is still on"],
        id="another image is below",
    ),
    pytest.param(
        {"chain": []},
        ["commit vda", "commit vdb", "pivot vdb"],
        ["could not find image '/tank/web/vda", "vda is still on"],
        id="no image is below",
    ),
    pytest.param(
        {"pivots_to": "/golden.qcow2"},
        ["commit vda", "commit vdb", "pivot vda", "pivot vdb"],
        ["vda is on /golden.qcow2, not on /tank/web/vda"],
        id="pivoted to something else",
    ),
    pytest.param(
        {"forgetful": True},
        ["commit vda", "commit vdb", "pivot vda", "pivot vdb"],
        [f"the persistent definition still names {overlay('vda')}"],
        id="persistent definition not changed",
    ),
    pytest.param(
        {"source": "/elsewhere.qcow2"},
        ["commit vdb", "pivot vdb"],
        ["vda is on /elsewhere.qcow2, not on /tank/web/vda"],
        id="on neither",
    ),
]


@pytest.mark.parametrize(("changes", "trace", "says"), FAULTS)
def test_what_fails_is_named_and_the_other_disk_comes_back(
    changes: dict[str, object], trace: list[str], says: list[str]
) -> None:
    guest = FakeGuest(vda=frozen("vda", **changes), vdb=frozen("vdb"))
    with pytest.raises(CommitFailed) as caught:
        to_base(guest)
    assert work(guest) == trace
    assert str(caught.value).startswith("web: ")
    for text in says:
        assert text in str(caught.value)
    assert "vdb" not in str(caught.value)
    assert guest.drives["vdb"].source == base("vdb")
    assert guest.trace[-1] == "end listening"


@pytest.mark.parametrize(
    ("changes", "says", "job"),
    [
        pytest.param(
            {"ready_after": NEVER}, "its commit is not ready within the deadline", True, id="commit"
        ),
        pytest.param({"drained_after": NEVER}, "not ready for pivot yet", True, id="pivot"),
    ],
)
def test_after_the_deadline_the_job_goes_on(
    changes: dict[str, object], says: str, job: bool
) -> None:
    guest = FakeGuest(vda=frozen("vda", **changes))
    with pytest.raises(CommitFailed, match=says):
        to_base(guest, timeout_s=0.02)
    assert (guest.drives["vda"].reads is not None) == job
    guest.drives["vda"].ready_after = guest.drives["vda"].drained_after = 0
    to_base(guest)
    assert work(guest).count("commit vda") == 1


def test_qemu_that_hangs_in_the_middle_of_a_commit() -> None:
    """libvirt shows the commit as under way for ever: nobody waits for that."""
    guest = FakeGuest(vda=frozen("vda", ready_after=NEVER))
    guest.hangs = True
    with pytest.raises(CommitFailed, match="no answer: given up"):
        to_base(guest, timeout_s=3600)
    assert guest.trace.count("asked") == 1
    guest.hangs = False
    guest.drives["vda"].ready_after = 400
    to_base(guest, timeout_s=3600)
    assert guest.trace.count("asked") > 2
    assert work(guest)[0] == "commit vda"
    assert guest.drives["vda"].source == base("vda")


def test_off_on_its_overlay() -> None:
    guest = FakeGuest(vda=frozen("vda"), vdb=at_base("vdb"))
    guest.active = False
    with pytest.raises(CommitFailed) as caught:
        to_base(guest)
    assert f"vda is still on {overlay('vda')}" in str(caught.value)
    assert "vdb" not in str(caught.value)
    assert work(guest) == ["commit vda"]


def test_off_on_its_base() -> None:
    guest = FakeGuest(vda=at_base("vda"))
    guest.active = False
    to_base(guest)
    assert work(guest) == []


def test_off_and_only_the_persistent_definition_names_the_overlay() -> None:
    guest = FakeGuest(vda=at_base("vda"))
    guest.drives["vda"].persistent = overlay("vda")
    with pytest.raises(CommitFailed, match="persistent definition still names"):
        to_base(guest)


@pytest.mark.parametrize("dies_at", ["commit vda", "commit vdb", "pivot vda", "pivot vdb"])
def test_guest_dies_meanwhile(dies_at: str) -> None:
    guest = FakeGuest(vda=frozen("vda"), vdb=frozen("vdb"))
    guest.dies_at = dies_at
    with pytest.raises(CommitFailed, match=r"vdb is still on /staging/.*/vdb") as caught:
        to_base(guest)
    on_overlay = guest.drives["vda"].source == overlay("vda")
    assert ("vda is still on" in str(caught.value)) == on_overlay


def test_only_the_named_disks_are_touched() -> None:
    guest = FakeGuest(vda=frozen("vda"), vdb=frozen("vdb"))
    to_base(guest, "vdb")
    assert work(guest) == ["commit vdb", "pivot vdb"]
    assert guest.drives["vda"].source == overlay("vda")


@pytest.mark.parametrize("detached_at", ["commit vdb", "pivot vdb"])
def test_a_disk_that_is_detached_is_neither_pivoted_nor_released(detached_at: str) -> None:
    guest = FakeGuest(vdb=frozen("vdb"), vda=frozen("vda", ready_after=NEVER))
    guest.detached_at = {detached_at: "vda"}
    released: list[str] = []
    # One that vanishes just when its commit is to begin may be reported, but never for ever.
    with suppress(CommitFailed):
        live_commit.to_base(guest, chains("vdb", "vda"), 60, noting(released), AppArmor().allow)
    to_base(guest, "vdb", "vda")
    assert guest.drives["vdb"].source == base("vdb")
    assert "pivot vda" not in guest.trace
    assert released == ["vdb"]


def noting(released: list[str]) -> live_commit.ReleaseDisk:
    def release_disk(target: str, do: Callable[[], None]) -> None:
        released.append(target)
        do()

    return release_disk


def test_only_a_disk_whose_commit_is_ready_is_released() -> None:
    guest = FakeGuest(vda=frozen("vda"), vdb=at_base("vdb"), vdc=frozen("vdc", start_fails=True))
    released: list[tuple[str, list[str]]] = []

    def release_disk(target: str, do: Callable[[], None]) -> None:
        released.append((target, work(guest)))
        do()

    with pytest.raises(CommitFailed, match="vdc"):
        live_commit.to_base(guest, chains("vda", "vdb", "vdc"), 60, release_disk, AppArmor().allow)
    assert released == [("vda", ["commit vda", "commit vdc"])]


def test_a_disk_whose_release_cannot_be_written_down_is_not_pivoted() -> None:
    guest = FakeGuest(vda=frozen("vda"))

    def release_disk(target: str, do: Callable[[], None]) -> None:
        raise CommitFailed("no journal")

    with pytest.raises(CommitFailed, match=r"no journal.*vda is still on"):
        live_commit.to_base(guest, chains("vda"), 60, release_disk, AppArmor().allow)
    assert work(guest) == ["commit vda"]


@pytest.mark.parametrize(
    ("denied", "allows", "trace"),
    [
        pytest.param(
            ("vda",),
            True,
            ["commit vda", "commit vdb", "commit vda", "pivot vdb", "pivot vda"],
            id="one base, allowed",
        ),
        pytest.param(
            ("vda", "vdb"),
            True,
            [*["commit vda", "commit vdb"] * 2, "pivot vda", "pivot vdb"],
            id="both bases, allowed once for both",
        ),
        pytest.param(
            ("vda",), False, ["commit vda", "commit vdb", "pivot vdb"], id="cannot be allowed"
        ),
    ],
)
def test_bases_that_apparmor_denies(
    denied: tuple[str, ...], allows: bool, trace: list[str]
) -> None:
    guest = FakeGuest(vda=frozen("vda"), vdb=frozen("vdb"))
    for target in denied:
        guest.drives[target].start_fails = True

    def stop_denying() -> None:
        for target in denied:
            guest.drives[target].start_fails = not allows

    armor = AppArmor(allows, stop_denying)
    if allows:
        to_base(guest, armor=armor)
    else:
        with pytest.raises(CommitFailed, match=r"Permission denied.*vda is still on"):
            to_base(guest, armor=armor)
    assert work(guest) == trace
    assert armor.asked == [(UUID, sorted(base(target) for target in denied))]


def test_still_denied_after_it_was_allowed() -> None:
    guest = FakeGuest(vda=frozen("vda", start_fails=True), vdb=frozen("vdb"))
    armor = AppArmor(allows=True)
    with pytest.raises(CommitFailed, match=r"Permission denied.*vda is still on"):
        to_base(guest, armor=armor)
    assert len(armor.asked) == 1
    assert work(guest).count("commit vda") == 2
    assert guest.drives["vdb"].source == base("vdb")


def test_apparmor_is_not_asked_for_other_failures() -> None:
    guest = FakeGuest(vda=frozen("vda", chain=[]), vdb=frozen("vdb", ready_after=2))
    armor = AppArmor(allows=True)
    with pytest.raises(CommitFailed, match="could not find image"):
        to_base(guest, armor=armor)
    assert armor.asked == []


def test_apparmor_that_cannot_be_changed_stops_no_other_disk() -> None:
    guest = FakeGuest(vda=frozen("vda", start_fails=True), vdb=frozen("vdb"))

    def fail() -> None:
        raise OSError("read-only file system")

    with pytest.raises(CommitFailed, match=r"Permission denied.*vda is still on"):
        to_base(guest, armor=AppArmor(on_request=fail))
    assert guest.drives["vdb"].source == base("vdb")


@pytest.mark.parametrize(
    "source",
    [overlay("vda"), "/somebody/elses.qcow2"],
    ids=["on ours", "on another that is on ours"],
)
def test_where_one_disk_has_a_problem_none_is_touched(source: str) -> None:
    guest = FakeGuest(vda=frozen("vda", source=source), vdb=frozen("vdb"))
    broken = OverlayChain("vda", (overlay("vda"),), problem="end that snapshot first")
    with pytest.raises(CommitFailed, match="vda: end that snapshot first"):
        live_commit.to_base(guest, {**chains("vdb"), "vda": broken}, 60, allow=AppArmor().allow)
    assert work(guest) == []


def test_none_of_several_overlays_may_stay_in_use() -> None:
    below = overlay("vda").replace("00000001", "00000002")
    guest = FakeGuest(vda=frozen("vda", persistent=below))
    chain = OverlayChain("vda", (overlay("vda"), below), base("vda"))
    guest.drives["vda"].forgetful = True
    with pytest.raises(CommitFailed, match=f"persistent definition still names {below}"):
        live_commit.to_base(guest, {"vda": chain}, 60, allow=AppArmor().allow)


def test_block_job_of_another_kind_is_not_taken_for_our_commit() -> None:
    guest = FakeGuest(vda=frozen("vda"))
    copying = guest.xml

    def xml(*, persistent: bool = False, secure: bool = False) -> str:
        mirror = "" if persistent else "<mirror type='file' job='copy' ready='yes'/>"
        return copying(persistent=persistent).replace("<target ", f"{mirror}<target ")

    guest.xml = xml  # type: ignore[method-assign]
    with pytest.raises(CommitFailed, match="block job of another kind"):
        to_base(guest)
    assert not any(what.startswith("pivot") for what in guest.trace)
