import re
from pathlib import Path

import pytest

from zvmsnap.clone.destroy import CLONE_PROPERTY
from zvmsnap.common import snapshot_name
from zvmsnap.config import destination, properties
from zvmsnap.config.properties import Property, faults

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "properties.md"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        pytest.param("mod", "off", "no such property; is zvmsnap:mode meant?", id="mod"),
        pytest.param("mode:hurly", "off", "is zvmsnap:mode:hourly meant?", id="mode of a type"),
        pytest.param("recursiv", "on", "is zvmsnap:recursive meant?", id="recursiv"),
        pytest.param("Recursive", "on", "is zvmsnap:recursive meant?", id="capitals"),
        pytest.param("xyzzy", "1", "no such property; it knows zvmsnap:mode, ", id="like none"),
        pytest.param("recursive", "yes", "its values are on and off; is on meant?", id="yes"),
        pytest.param("recursive", "ON", "is on meant?", id="ON"),
        pytest.param("recursive", "zfs", "is on meant?", id="as in sanoid.conf"),
        pytest.param("recursive", "no", "is off meant?", id="no"),
        pytest.param("recursive", "", "is off meant?", id="empty"),
    ],
)
def test_what_means_nothing(name: str, value: str, says: str) -> None:
    (fault,) = faults([Property("tank/vm", f"zvmsnap:{name}", value)] * 2)
    assert fault.startswith(f"tank/vm: zvmsnap:{name}={value!r} is ignored: ")
    assert says in fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "off"),
        ("mode", "memory,crash"),
        ("mode:manual", "crash"),
        ("recursive", "on"),
        ("recursive", "off"),
        ("group", "any name"),
        ("vault", "/srv/vault"),
        ("clone", "web-2"),
        ("keep-memory", "24"),
        ("keep-memory:daily", "14d"),
        ("keep-memory:manual", "all"),
    ],
)
def test_what_means_something(name: str, value: str) -> None:
    assert faults([Property("tank/vm", f"zvmsnap:{name}", value)]) == []


@pytest.mark.parametrize("name", ["keep-memory", "keep-memory:hourly"])
@pytest.mark.parametrize("value", ["24 points", "", "2w", "0"])
def test_how_long_ram_is_kept(name: str, value: str) -> None:
    (fault,) = faults([Property("tank/vm", f"zvmsnap:{name}", value)])
    assert fault.startswith(f"tank/vm: zvmsnap:{name}={value!r} says not how long RAM is kept, so ")
    assert "none goes before its point: say a number of points as in 24" in fault
    (misspelt,) = faults([Property("tank/vm", "zvmsnap:keep-memory:hurly", "24")])
    assert "is zvmsnap:keep-memory:hourly meant?" in misspelt


def test_foreign_text_is_shown_as_one_line() -> None:
    (fault,) = faults([Property("tank", "zvmsnap:mod", "\x1b[2J\nzvmsnap: all is well\udcff")])
    assert fault.isprintable()


def test_all_that_are_used_and_described_are_known() -> None:
    assert {CLONE_PROPERTY, destination.PROPERTY} <= set(properties.NAMES)
    described = set(re.findall(r"^\| `(zvmsnap:[a-zA-Z:-]+)`", REFERENCE.read_text(), re.M))
    of_types = ("zvmsnap:mode", "zvmsnap:keep-memory")
    types = {f"{name}:{each}" for each in snapshot_name.TYPES for name in of_types}
    described -= {f"{name}:TYPE" for name in of_types}
    assert described | types == set(properties.NAMES)
