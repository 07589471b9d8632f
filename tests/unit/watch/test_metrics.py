import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.unit.watch.conftest import NOW_S
from zvmsnap.points.manifest import PauseParts
from zvmsnap.watch import exposition, metrics
from zvmsnap.watch.facts import Facts
from zvmsnap.watch.thresholds import Thresholds


def sample(name: str, **labels: str) -> str:
    said = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{said}}}" if said else name


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("zvmsnap_monitor_state", {}, 1),
        ("zvmsnap_monitor_timestamp_seconds", {}, NOW_S),
        ("zvmsnap_failures_total", {"cause": "NoSpace"}, 3),
        ("zvmsnap_guests", {"watched": "yes"}, 1),
        ("zvmsnap_guest_points", {"guest": "web"}, 3),
        ("zvmsnap_guest_warn_age_seconds", {"guest": "web"}, 93600),
        ("zvmsnap_point_created_timestamp_seconds", {"guest": "web"}, NOW_S - 3600),
        ("zvmsnap_point_level_info", {"guest": "web", "level": "memory"}, 1),
        ("zvmsnap_point_stand_still_seconds", {"guest": "web"}, 1.5),
        ("zvmsnap_point_pause_seconds", {"guest": "web", "part": "overlays"}, 0.75),
        ("zvmsnap_point_commit_seconds", {"guest": "web"}, 4),
        ("zvmsnap_point_memory_bytes", {"guest": "web"}, 4),
        ("zvmsnap_point_memory_alone_bytes", {"guest": "web"}, 100),
        ("zvmsnap_point_memory_shared_bytes", {"guest": "web"}, 200),
        ("zvmsnap_verify_good", {"guest": "web"}, 1),
        ("zvmsnap_run_open_seconds", {"guest": "web", "run": "autosnap_2026-11-20_03:00:00"}, 90),
        ("zvmsnap_merge_blocked", {"guest": "web", "run": "autosnap_2026-11-20_03:00:00"}, 1),
        ("zvmsnap_waiting_points", {}, 2),
        ("zvmsnap_offsite_failed", {"guest": "web", "destination": "nas:p"}, 1),
        ("zvmsnap_free_bytes", {"directory": "vault"}, 500 << 30),
        ("zvmsnap_problems", {"guest": "web", "kind": "merge", "severity": "warning"}, 1),
    ],
)
def test_a_metric(written: bytes, name: str, labels: dict[str, str], value: float) -> None:
    lines = dict(line.rsplit(" ", 1) for line in written.decode().splitlines())
    assert float(lines[sample(name, **labels)]) == value


def test_names_are_as_prometheus_has_them(written: bytes) -> None:
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", written.decode(), re.M))
    helped = re.findall(r"^# HELP (\S+) \S.*$", written.decode(), re.M)
    assert list(types) == helped and len(set(helped)) == len(helped)
    for name, kind in types.items():
        assert re.fullmatch(r"zvmsnap_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|minutes|hours|days|kib|mib|percent)(_|$)", name)


def test_no_two_samples_have_the_same_labels(written: bytes) -> None:
    samples = [line.rsplit(" ", 1)[0] for line in written.decode().splitlines()]
    assert len(set(samples)) == len(samples)


def test_what_is_not_known_is_left_out(facts: Callable[..., Facts], limits: Thresholds) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("guests", "points", "properties", "work", "sent"))
    said = exposition.text(metrics.families(facts(**nothing, rooms={}), [], limits, {}, {}))
    names = set(re.findall(r"^# TYPE (\S+)", said.decode(), re.M))
    assert names == {
        "zvmsnap_build_info",
        "zvmsnap_monitor_timestamp_seconds",
        "zvmsnap_monitor_state",
    }


def test_promtool_finds_nothing(written: bytes) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed: apt install prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=written, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_parts_of_a_pause_are_all_told(written: bytes) -> None:
    parts = re.findall(r'^zvmsnap_point_pause_seconds\{.*part="(\w+)"', written.decode(), re.M)
    assert [f"{part}_s" for part in parts] == list(msgspec.structs.asdict(PauseParts()))
