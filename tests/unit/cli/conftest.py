"""Runs command lines in this process: on a vault alone, or on a host with a guest and its point."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.host import FakeHost
from tests.fakes.restore_scene import Scene
from tests.fakes.take_scene import configure
from tests.fakes.zfs_pool import FakeZfs, listed
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.zfs import mounts, types, zfs

NAME = "autosnap_2026-11-20_03:00:00_hourly"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def configured(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read `config`."""
    configure(tmp_path, config, monkeypatch)


@pytest.fixture
def run(configured: None, command: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line; ZFS has one snapshot, of tank/web."""
    known = types.Snapshot("tank/web", NAME, 11, 101)
    named = types.NamedSnapshots({known.full_name: known}, frozenset({"tank"}))
    monkeypatch.setattr(zfs, "all_snapshots", lambda guids=None: listed([known], "tank"))
    monkeypatch.setattr(zfs, "snapshots", lambda names: named)
    return command


@pytest.fixture
def put(config: Config) -> Callable[[Manifest], Path]:
    """Publishes a point in the vault."""

    def publish(manifest: Manifest) -> Path:
        incoming = vault.incoming(config.vault_dir, manifest.domain, manifest.capture)
        return vault.publish(incoming, manifest).directory

    return publish


@pytest.fixture
def overlaid_host(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The host of `staged`: the snapshot of the run exists."""
    pools.present = {f"tank/web@{NAME}": 11}
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(zfs, "snapshots", pools.snapshots)
    return host


@pytest.fixture
def scene(host_with_points: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A host with a guest and, after `point()`, a point of it."""
    built = host_with_points()
    built.host.install(monkeypatch)
    return built


@pytest.fixture
def scene_run(configured: None, scene: Scene, command: Run) -> Run:
    """Runs a command line on the host of `scene`."""
    return command
