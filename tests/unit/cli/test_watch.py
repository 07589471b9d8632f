import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.points.manifest import Manifest
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def watched(
    run: Run, tmp_path: Path, host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs a command line on a host with a guest that has no point."""
    table = [Mount(1, 0, "/", str(tmp_path / "tank"), "tank/web", "zfs")]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    return run


def test_a_guest_without_a_point(watched: Run) -> None:
    code, out, err = watched("monitor")
    assert (code, err, out.count("\n")) == (2, "", 1)
    assert out.startswith("ZVMSNAP CRITICAL - web: has no point: its disks are on tank/web; ")
    assert " | guests=1;;;0 " in out


def test_an_old_point_and_what_counts_for_it(
    watched: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    put(manifest())
    code, out, _ = watched("monitor", "--warn-age", "off", "--crit-age", "off", "web")
    assert code in (0, 1)  # the disk of the tests may be full
    assert "old (more than" not in out and " web_age=" in out
    code, out, _ = watched("monitor", "--crit-age", "off")
    assert code == 1 and "ZVMSNAP WARNING - " in out and "old (more than 26h)" in out


def test_what_cannot_be_asked_is_unknown(watched: Run, host: FakeHost) -> None:
    host.reachable = False
    code, out, _ = watched("monitor")
    assert (code, out.partition(" | ")[0]) == (
        3,
        "ZVMSNAP UNKNOWN - libvirt: qemu:///system: no",
    )


@pytest.mark.parametrize("words", [["--warn-age", "soon"], ["--warn-age", "soon", "--json"]])
def test_what_is_asked_wrongly_is_unknown(watched: Run, words: list[str]) -> None:
    code, out, err = watched("monitor", *words)
    assert (code, err) == (3, "")
    assert out.startswith("ZVMSNAP UNKNOWN - 'soon' is no age: say ")


def test_json(
    watched: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    put(manifest())
    code, out, _ = watched("monitor", "--json", "--crit-age", "6h")
    said = json.loads(out)
    assert (code, said["state"]) == (2, "critical")
    assert said["findings"][0]["kind"] == "age" and said["findings"][0]["guest"] == "web"
    (guest,) = said["guests"]
    assert guest["newest"] == "web@autosnap_2026-11-20_03:00:00"
    assert (guest["watched"], guest["level"], guest["crit_age_s"]) == (True, "memory", 6 * 3600)


def test_metrics(watched: Run, tmp_path: Path) -> None:
    file = tmp_path / "zvmsnap.prom"
    assert watched("monitor", "--prometheus", str(file))[0] == 2
    assert "zvmsnap_monitor_state 2\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    assert not list(tmp_path.glob(".*"))


def test_metrics_that_cannot_be_written(watched: Run, tmp_path: Path) -> None:
    code, out, _ = watched("monitor", "--prometheus", str(tmp_path / "no" / "zvmsnap.prom"), "web")
    assert code == 2  # the guest without a point
    assert "zvmsnap.prom: No such file or directory" in out
