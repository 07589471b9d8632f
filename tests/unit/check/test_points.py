from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.check_scene import CheckedHost
from zvmsnap.check.finding import Colour
from zvmsnap.points import compatibility, vault, verify_result
from zvmsnap.points.manifest import DOMAIN_XML, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.replication import send_status

Make = Callable[..., Manifest]
UUID = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture
def point(checked: CheckedHost, manifest: Make) -> Callable[[int], RestorePoint]:
    """Publishes a point of the guest, of that hour."""

    def publish(hour: int) -> RestorePoint:
        made = manifest(
            capture=f"{UUID}.0000000{hour}",
            run=f"autosnap_2026-11-20_0{hour}:00:00",
            created=f"2026-11-20T0{hour}:00:00.000+00:00",
        )
        incoming = vault.incoming(checked.settings.vault_dir, "web", made.capture)
        (incoming / DOMAIN_XML).write_text(checked.web.xml())
        return vault.publish(incoming, made)

    return publish


def of(host: CheckedHost, check: str) -> list[tuple[Colour, str]]:
    return [(each.colour, each.text) for each in host.findings() if each.check == check]


def test_points_that_no_longer_load(
    checked: CheckedHost, point: Callable[[int], RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def why_not(host: object, xml: str, made_on: object, *, cold: bool) -> list[str]:
        assert not cold
        asked.append(xml)
        return ["its RAM was written by QEMU 11.1; 10.0.2 here is older"] if bad else []

    bad = False
    monkeypatch.setattr(compatibility, "why_not", why_not)
    newest = [point(hour) for hour in (1, 2, 3)][-1]
    assert of(checked, "points.loadable")[0][0] is Colour.GREEN
    # Points of one QEMU and CPU are judged once.
    assert len(asked) == 1
    bad = True
    assert of(checked, "points.unloadable") == [
        (
            Colour.YELLOW,
            f"the RAM of 3 points up to {newest.name} no longer loads here: its RAM was written by "
            "QEMU 11.1; 10.0.2 here is older",
        )
    ]


def test_a_damaged_point(checked: CheckedHost, point: Callable[[int], RestorePoint]) -> None:
    made = point(1)
    (made.directory / "manifest.json").write_text("{")
    ((colour, text),) = of(checked, "points.damaged")
    assert colour is Colour.YELLOW and str(made.directory) in text


def test_a_point_that_did_not_pass(
    checked: CheckedHost, point: Callable[[int], RestorePoint]
) -> None:
    made = point(1)
    now = datetime.now(UTC).isoformat()
    verify_result.keep(made, VerifyResult(checked=now, why="its disk is empty"))
    assert of(checked, "points.verify") == [
        (Colour.RED, f"{made.name} did not pass its verification: its disk is empty")
    ]


def test_a_send_that_failed(checked: CheckedHost, tmp_path: Path) -> None:
    journal = checked.settings.journal_dir
    send_status.write_failure(journal, "nas:usb/away", "web", UUID, "no route to host")
    assert of(checked, "points.send") == [
        (Colour.YELLOW, "was not sent to nas:usb/away: no route to host")
    ]
