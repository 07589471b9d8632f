import re
from pathlib import Path

import pytest

from zvmsnap.clone.destroy import CLONE_PROPERTY
from zvmsnap.common import snapshot_name
from zvmsnap.config import properties
from zvmsnap.config.properties import Property, faults
from zvmsnap.replication import remote_vault

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
    ],
)
def test_what_means_something(name: str, value: str) -> None:
    assert faults([Property("tank/vm", f"zvmsnap:{name}", value)]) == []


def test_foreign_text_is_shown_as_one_line() -> None:
    (fault,) = faults([Property("tank", "zvmsnap:mod", "\x1b[2J\nzvmsnap: all is well\udcff")])
    assert fault.isprintable()


def test_all_that_are_used_and_described_are_known() -> None:
    assert {CLONE_PROPERTY, remote_vault.PROPERTY} <= set(properties.NAMES)
    described = set(re.findall(r"^\| `(zvmsnap:[a-zA-Z:]+)`", REFERENCE.read_text(), re.M))
    types = {f"zvmsnap:mode:{each}" for each in snapshot_name.TYPES}
    assert (described - {"zvmsnap:mode:TYPE"}) | types == set(properties.NAMES)
