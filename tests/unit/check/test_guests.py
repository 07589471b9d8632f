from collections.abc import Callable

import pytest

from tests.fakes.check_scene import WEB, CheckedHost
from zvmsnap.check.finding import Colour, Finding
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, PauseParts, Timing

Make = Callable[..., Manifest]


def found(host: CheckedHost, check: str) -> Finding:
    (finding,) = [each for each in host.findings() if each.check == check]
    return finding


def test_each_level_is_told(checked: CheckedHost) -> None:
    assert found(checked, "guest.level").text == (
        "can have level memory; also paused, quiesced, crash"
    )
    checked.web.agent = None
    assert found(checked, "guest.level").text == (
        "can have level memory; also paused, crash; not quiesced: it has no channel for an agent"
    )


def test_a_required_level_that_is_out_of_reach(checked: CheckedHost) -> None:
    checked.web.agent = None
    checked.config('mode = "quiesced,required"')
    finding = found(checked, "guest.level")
    assert (finding.colour, finding.text) == (
        Colour.RED,
        "gets no point: quiesced is required, and it has no channel for an agent",
    )


def test_many_disks(checked: CheckedHost) -> None:
    checked.host.known.clear()
    checked.web = checked.guest("web", checked.web.uuid, *[WEB] * 23)
    checked.config("[limits]\nmemory_max_pause_s = 2")
    finding = found(checked, "guest.pause")
    assert "to put its 23 disks on overlays" in finding.text
    assert finding.mend == f"zfs set zvmsnap:mode=paused,memory,crash {WEB}"


@pytest.fixture
def point(checked: CheckedHost, manifest: Make) -> Callable[..., None]:
    """Publishes a point of the guest."""

    def publish(**changes: object) -> None:
        made = manifest(uuid=checked.web.uuid, **changes)
        incoming = vault.incoming(checked.settings.vault_dir, "web", made.capture)
        vault.publish(incoming, made)

    return publish


def test_the_newest_point_and_its_pause(checked: CheckedHost, point: Callable[..., None]) -> None:
    assert found(checked, "guest.last-point").text == "has no point yet"
    point(timing=Timing(pause_s=0.75, pause_parts=PauseParts(ram_s=0.25, overlays_s=0.5)))
    finding = found(checked, "guest.last-point")
    assert (finding.colour, finding.text) == (
        Colour.GREEN,
        "its newest point is of level memory, for which it stood still for 0.75 s "
        "(the last of RAM 0.25 s, overlays 0.50 s)",
    )


def test_a_point_of_less_than_was_wanted(checked: CheckedHost, point: Callable[..., None]) -> None:
    point(level=ConsistencyLevel.CRASH, reason="staging was full", memory=None)
    finding = found(checked, "guest.last-point")
    assert (finding.colour, finding.text) == (
        Colour.YELLOW,
        "its newest point is of level crash, not memory: staging was full",
    )
