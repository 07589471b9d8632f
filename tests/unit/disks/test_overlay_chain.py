from collections.abc import Callable

import pytest

from zvmsnap.common.errors import OverlayUnreadable
from zvmsnap.disks import overlay_chain
from zvmsnap.disks.overlay_chain import OverlayChain
from zvmsnap.disks.qemu_img import Layer
from zvmsnap.virt import domain_xml

UUID = "c0ffee00-0000-4000-8000-000000000001"
TOP = f"/staging/{UUID}.00000003/vda.zvmsnap.qcow2"
MIDDLE = f"/staging/{UUID}.00000002/vda.zvmsnap.qcow2"
LOWEST = f"/old staging/{UUID}.00000001/vda.zvmsnap.qcow2"
BASE, GOLDEN, THEIRS = "/tank/web/a.qcow2", "/tank/golden.qcow2", "/tank/web/a.snap1"


def domain(source: str, *chain: str) -> domain_xml.Domain:
    below = "".join(f"<backingStore type='file'><source file='{path}'/>" for path in chain)
    return domain_xml.parse(
        f"<domain><devices><disk type='file'><source file='{source}'/>"
        f"{below}{'</backingStore>' * len(chain)}<target dev='vda'/></disk></devices></domain>"
    )


def read_of(*chain: str) -> Callable[[str], tuple[Layer, ...]]:
    return lambda path: tuple(Layer(each, "qcow2") for each in (path, *chain))


def not_read(path: str) -> tuple[Layer, ...]:
    pytest.fail(f"{path} must not be read: libvirt names its backing files")


def unreadable(path: str) -> tuple[Layer, ...]:
    raise OverlayUnreadable(f"{path}: its backing files cannot be read: damaged")


TABLE = [
    pytest.param(domain(BASE), not_read, None, id="on its base"),
    pytest.param(domain(BASE, GOLDEN), not_read, None, id="on its base, on a golden image"),
    pytest.param(domain(""), not_read, None, id="no medium"),
    pytest.param(domain(TOP, BASE), not_read, OverlayChain("vda", (TOP,), BASE), id="one of ours"),
    pytest.param(
        domain(TOP, BASE, GOLDEN),
        not_read,
        OverlayChain("vda", (TOP,), BASE, below=(GOLDEN,)),
        id="never further down",
    ),
    pytest.param(
        domain(TOP, MIDDLE, LOWEST, BASE, GOLDEN),
        not_read,
        OverlayChain("vda", (TOP, MIDDLE, LOWEST), BASE, below=(GOLDEN,)),
        id="three of ours",
    ),
    pytest.param(
        domain(TOP, THEIRS, MIDDLE, BASE),
        not_read,
        OverlayChain("vda", (TOP,), THEIRS, below=(MIDDLE, BASE)),
        id="somebody's between two of ours: one at a time",
    ),
    pytest.param(
        domain(TOP),
        read_of(BASE, GOLDEN),
        OverlayChain("vda", (TOP,), BASE, below=(GOLDEN,)),
        id="off: chain is read",
    ),
    pytest.param(
        domain(TOP),
        read_of(MIDDLE, BASE),
        OverlayChain("vda", (TOP, MIDDLE), BASE),
        id="off, two of ours",
    ),
    pytest.param(
        domain(TOP),
        unreadable,
        OverlayChain("vda", (TOP,), problem=f"{TOP}: its backing files cannot be read: damaged"),
        id="cannot be read",
    ),
    pytest.param(
        domain(TOP),
        read_of(),
        OverlayChain("vda", (TOP,), problem=f"{TOP} has no base below it"),
        id="no base",
    ),
    pytest.param(
        domain(TOP, MIDDLE),
        not_read,
        OverlayChain("vda", (TOP, MIDDLE), problem=f"{TOP} has no base below it"),
        id="ours to the bottom",
    ),
    pytest.param(
        domain(THEIRS, TOP, MIDDLE, BASE),
        not_read,
        OverlayChain(
            "vda",
            (TOP, MIDDLE),
            problem=f"{THEIRS} is on top of it, made by somebody else: end that snapshot first",
        ),
        id="somebody's on ours",
    ),
    pytest.param(domain(THEIRS, BASE), not_read, None, id="somebody's on the base"),
    pytest.param(domain(THEIRS), not_read, None, id="somebody's, off"),
]


@pytest.mark.parametrize(("definition", "read", "expected"), TABLE)
def test_of(
    definition: domain_xml.Domain,
    read: Callable[[str], tuple[Layer, ...]],
    expected: OverlayChain | None,
) -> None:
    assert overlay_chain.of(definition, read) == ({"vda": expected} if expected else {})
    assert expected is None or expected.top == expected.overlays[0]


class TwoDefinitions:
    """A guest with two definitions."""

    def __init__(self, live: str, persistent: str, *, active: bool, kept: bool) -> None:
        self._xml = {
            False: f"<domain><devices>{live}</devices></domain>",
            True: f"<domain><devices>{persistent}</devices></domain>",
        }
        self._active = active
        self._kept = kept

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str:
        assert self._kept or not persistent, "it has none"
        return self._xml[persistent]

    def is_active(self) -> bool:
        return self._active

    def is_persistent(self) -> bool:
        return self._kept


def disk(source: str, below: str, target: str = "vda") -> str:
    return (
        f"<disk type='file'><source file='{source}'/><backingStore type='file'>"
        f"<source file='{below}'/></backingStore><target dev='{target}'/></disk>"
    )


@pytest.mark.parametrize(
    ("guest", "tops"),
    [
        pytest.param(
            TwoDefinitions(disk(TOP, BASE), disk(MIDDLE, BASE), active=True, kept=True),
            {"vda": TOP},
            id="what it runs on comes first",
        ),
        pytest.param(
            TwoDefinitions(disk(BASE, GOLDEN), disk(TOP, BASE), active=True, kept=True),
            {"vda": TOP},
            id="its next start would be on ours",
        ),
        pytest.param(
            TwoDefinitions(disk(TOP, BASE), disk(MIDDLE, BASE, "vdb"), active=True, kept=True),
            {"vda": TOP, "vdb": MIDDLE},
            id="both",
        ),
        pytest.param(
            TwoDefinitions(disk(TOP, BASE), "", active=True, kept=False),
            {"vda": TOP},
            id="transient",
        ),
        pytest.param(
            TwoDefinitions(disk(TOP, BASE), disk(MIDDLE, BASE, "vdb"), active=False, kept=True),
            {"vda": TOP},
            id="off: there is one definition",
        ),
    ],
)
def test_of_guest(guest: TwoDefinitions, tops: dict[str, str]) -> None:
    chains = overlay_chain.of_guest(guest)
    assert {target: chain.top for target, chain in chains.items()} == tops
