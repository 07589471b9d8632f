import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import OTHER, UUID
from zvmsnap.config.settings import Config
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import DOMAIN_XML, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.watch import newest_points

Make = Callable[..., Manifest]
CHECKED = "2026-11-21T03:00:00.000+00:00"


@pytest.fixture
def put(config: Config, manifest: Make) -> Callable[..., Path]:
    """Publishes a point of that number, so many seconds after the first."""

    def publish(number: int, domain: str = "web", uuid: str = UUID) -> Path:
        own = manifest(
            domain=domain,
            uuid=uuid,
            run=f"run{number}",
            created=f"2026-11-20T03:00:{number:02}.000+00:00",
            capture=f"{uuid}.{number:08x}",
            snapshots=(SnapshotRef("tank/web", f"run{number}_hourly", number + 1, number + 1),),
        )
        incoming = vault.incoming(config.vault_dir, domain, own.capture)
        (incoming / DOMAIN_XML).write_text("<domain/>")
        os.utime(incoming / DOMAIN_XML, (number, number))
        return vault.publish(incoming, own).directory

    return publish


def found(config: Config) -> dict[str, tuple[str, int]]:
    return {
        key: (each.newest.run if each.newest else each.damaged, each.count)
        for key, each in newest_points.of_all(config.vault_dir).items()
    }


def test_of_an_empty_vault(config: Config) -> None:
    assert found(config) == {}


def test_the_newest_of_each_guest(config: Config, put: Callable[..., Path]) -> None:
    for number in (3, 1, 2):
        put(number)
    put(7, "db", OTHER)
    assert found(config) == {UUID: ("run3", 3), OTHER: ("run7", 1)}


def test_of_what_was_published_last_zfs_has_the_order(
    config: Config, put: Callable[..., Path]
) -> None:
    put(3)
    older = put(2)
    os.utime(older / DOMAIN_XML, (99, 99))  # by a clock that was ahead
    assert found(config) == {UUID: ("run3", 2)}


def test_a_guest_with_two_names(config: Config, put: Callable[..., Path]) -> None:
    put(1, "old")
    put(2, "web")
    put(3, "web")
    assert found(config) == {UUID: ("run3", 3)}


def test_what_cannot_be_read(config: Config, put: Callable[..., Path]) -> None:
    put(1)
    (put(2) / "manifest.json").write_text("{")
    points = newest_points.of_all(config.vault_dir)[UUID]
    assert points.newest and points.newest.run == "run1"
    assert str(config.vault_dir / "web/run2/manifest.json") in points.damaged
    (put(1, "db", OTHER) / "manifest.json").write_text("{")
    assert newest_points.of_all(config.vault_dir)["db"].newest is None


def test_no_symlink_is_followed(config: Config, put: Callable[..., Path]) -> None:
    folder = put(1).parent
    (config.vault_dir / "also").symlink_to(folder)
    assert found(config) == {UUID: ("run1", 1)}


def test_the_last_verification(config: Config, put: Callable[..., Path]) -> None:
    checked = [put(number) for number in (1, 2, 3)]
    for when, directory in enumerate(checked[:2], 1):
        point = vault.entry_in(directory)
        assert isinstance(point, RestorePoint)
        verify_result.keep(point, VerifyResult(checked=CHECKED, why=f"of {directory.name}"))
        os.utime(directory / verify_result.READ, (10 - when, 10 - when))
    points = newest_points.of_all(config.vault_dir)[UUID]
    assert points.verified and points.verified.why == "of run1"
    assert points.verified_name == "web@run1"


def test_few_of_many_manifests_are_read(
    config: Config, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        put(number)
    read: list[Path] = []
    really = vault.entry_in

    def noted(directory: Path) -> object:
        read.append(directory)
        return really(directory)

    monkeypatch.setattr(vault, "entry_in", noted)
    assert found(config) == {UUID: ("run39", 40)}
    assert len(read) == 2
