import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import DestinationInvalid, VaultMissing
from zvmsnap.config import destination
from zvmsnap.config.destination import Destination

GOOD = [
    pytest.param("usb/offsite", Destination("", "usb/offsite"), id="here"),
    pytest.param("usb", Destination("", "usb"), id="a pool"),
    pytest.param("nas:pool/x", Destination("nas", "pool/x"), id="host"),
    pytest.param("me@nas.lan:pool/x", Destination("me@nas.lan", "pool/x"), id="user and host"),
    pytest.param("pool/a:b", Destination("", "pool/a:b"), id="a colon behind a slash"),
    pytest.param("me@nas:pool/My VMs", Destination("me@nas", "pool/My VMs"), id="a blank"),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_parse(text: str, expected: Destination) -> None:
    parsed = destination.parse(text)
    assert parsed == expected
    assert parsed.name == text
    assert parsed.at(parsed.of("tank/vm")) == f"{text}/tank/vm"


@pytest.mark.parametrize(
    "text",
    [
        "", "/pool", "pool/", "pool//x", "1pool", "-oProxyCommand=x:pool/x", "a b:pool/x",
        "me@:pool/x", "$(id)@nas:pool/x", "nas;id:pool/x", "pool@snap", "me@[::1]:pool/x",
        "pool/x\n", "pool/x ", "pool/ x", "me@nas:", "pool/`id`", "pool/..", "pool/" + "x" * 300,
    ],
)  # fmt: skip
def test_no_destination(text: str) -> None:
    with pytest.raises(DestinationInvalid, match="is no destination"):
        destination.parse(text)


@given(st.text(max_size=40))
def test_nothing_for_a_shell_gets_through(text: str) -> None:
    """syncoid hands host names to a shell without quotes."""
    try:
        parsed = destination.parse(text)
    except DestinationInvalid:
        return
    assert re.fullmatch(r"[A-Za-z0-9@._-]*", parsed.host) and not parsed.host.startswith("-")
    assert re.fullmatch(r"[A-Za-z0-9_.: /-]+", parsed.root) and not parsed.root.startswith("-")


def test_datasets_below_the_root() -> None:
    usb = Destination("", "usb/offsite")
    assert usb.holds("usb/offsite/tank")
    assert not usb.holds("usb/offsite") and not usb.holds("usb/offsite2/tank")


@pytest.mark.parametrize(
    ("mountpoint", "mounted", "own", "path"),
    [
        ("/usb", "yes", "", "/usb/zvmsnap-vault"),
        ("/", "yes", "", "/zvmsnap-vault"),
        ("/usb", "no", "/x", "/x"),
        ("legacy", "yes", "/x", "/x"),
    ],
)
def test_where_its_vault_is(mountpoint: str, mounted: str, own: str, path: str) -> None:
    has = {"mountpoint": mountpoint, "mounted": mounted, "zvmsnap:vault": own}
    assert Destination("nas", "usb").vault(has) == path


@pytest.mark.parametrize(
    ("mountpoint", "mounted", "own"),
    [("/usb", "no", ""), ("legacy", "yes", ""), ("none", "no", ""), ("/usb", "yes", "x"),
     ("/usb", "yes", "/a\nb")],
)  # fmt: skip
def test_a_vault_that_is_nowhere(mountpoint: str, mounted: str, own: str) -> None:
    has = {"mountpoint": mountpoint, "mounted": mounted, "zvmsnap:vault": own}
    with pytest.raises(VaultMissing, match="nas:usb: "):
        Destination("nas", "usb").vault(has)


def test_rate() -> None:
    for rate in ("", "50M", "1G", "700k", "1000"):
        destination.check_rate(rate)
    for rate in ("0", "-1", "50 M", "50MB", "fast", "1.5M", "50M; id"):
        with pytest.raises(DestinationInvalid, match="is no bandwidth"):
            destination.check_rate(rate)
