"""What two machines would share."""

import pytest

from zvmsnap.inventory.sharing import shared


def domain(*devices: str) -> str:
    return f"<domain><devices>{''.join(devices)}</devices></domain>"


def disk(path: str, below: str = "", more: str = "") -> str:
    chain = f"<backingStore type='file'><source file='{below}'/></backingStore>" if below else ""
    source = f"<source file='{path}'/>"
    return f"<disk type='file'>{source}{chain}<target dev='vda'/>{more}</disk>"


READ_ONLY = "<readonly/>"


@pytest.mark.parametrize(
    ("clone", "originals", "reasons"),
    [
        pytest.param(disk("/b"), [disk("/a")], [], id="others"),
        pytest.param(
            disk("/a"), [disk("/a")], ["disk vda would be shared with the original: /a"], id="both"
        ),
        pytest.param(
            disk("/a", more=READ_ONLY),
            [disk("/a")],
            ["disk vda would be shared with the original: /a"],
            id="the original writes",
        ),
        pytest.param(
            disk("/a"),
            [disk("/a", more=READ_ONLY)],
            ["disk vda would be shared with the original: /a"],
            id="the clone writes",
        ),
        pytest.param(
            disk("/a", more=READ_ONLY), [disk("/a", more=READ_ONLY)], [], id="both read it"
        ),
        pytest.param(disk("/b", "/base"), [disk("/a", "/base")], [], id="a common base"),
        pytest.param(
            disk("/b", "/a"),
            [disk("/a")],
            ["backing file of disk vda would be shared with the original: /a"],
            id="the original as base",
        ),
        pytest.param(
            disk("/a", more=READ_ONLY),
            [disk("/a", more=READ_ONLY), disk("/a")],
            ["disk vda would be shared with the original: /a"],
            id="written in one of the original's definitions",
        ),
        pytest.param(
            "<new path='x'/>",
            [],
            ["whether devices/new@path is shared is not known: x"],
            id="unknown",
        ),
        pytest.param(
            "<serial type='file'><source path='/dev/null'/></serial>",
            ["<serial type='file'><source path='/dev/null'/></serial>"],
            [],
            id="nothing",
        ),
    ],
)
def test_shared(clone: str, originals: list[str], reasons: list[str]) -> None:
    assert list(shared(domain(clone), [domain(each) for each in originals])) == reasons
