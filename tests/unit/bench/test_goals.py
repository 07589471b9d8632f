"""Goals: met, missed by how much, or not said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench import back, goals, hooks, images, native
from bench.cells import BACKUPS, NATIVE, SENT, image_cell, round_cell
from bench.goals import Verdict
from bench.results import Result

Build = Callable[..., Result]
MIDDLE = round_cell(512, 2, apparmor=True).id


def verdict(found: dict[str, Result], words: str) -> Verdict:
    (one,) = [each for each in goals.verdicts(found) if words in each.what]
    return one


def paused(pause_s: float) -> dict[str, Any]:
    return {"usual": {"pause_s": [5.0, 6.0, 7.0]}, "paused": {"pause_s": [pause_s] * 3}}


@pytest.mark.parametrize(
    ("pause_s", "said", "against"),
    [(1.0, "met", "met"), (1.5, "missed by 0.50 s", "missed by 0.05 times")],
)
def test_paused(result: Build, pause_s: float, said: str, against: str) -> None:
    found = {MIDDLE: result(MIDDLE, paused(pause_s))}
    assert verdict(found, "paused stands still").said == said
    assert verdict(found, "the same against the usual hooks").said == against


def test_nothing_is_said_of_a_busy_machine_or_of_one_repeat(result: Build) -> None:
    busy = {MIDDLE: result(MIDDLE, paused(0.1), elsewhere_cpus=1.44)}
    said = verdict(busy, "paused stands still")
    assert said.said == "not said: the machine was busy, 1.4 CPUs elsewhere"
    assert said.figure == 0.1
    once = {MIDDLE: result(MIDDLE, paused(0.1), repeats=1)}
    assert verdict(once, "paused stands still").said == "not said: measured once"
    assert verdict({}, "paused stands still").said == "not measured"


def test_flat_is_of_all_rounds_and_one_busy_cell_silences_it(result: Build) -> None:
    cells = [round_cell(64, 1, apparmor=True).id, round_cell(1024, 4, apparmor=False).id]
    found = {cell: result(cell, paused(n)) for cell, n in zip(cells, (1.0, 1.25), strict=True)}
    assert verdict(found, "against the shortest").figure == 1.25
    assert verdict(found, "against the shortest").said == "met"
    found[cells[0]] = result(cells[0], paused(1.0), elsewhere_cpus=1.0)
    assert verdict(found, "against the shortest").said.startswith("not said")
    assert verdict({cells[0]: found[cells[0]]}, "against the shortest").figure is None


def test_flat_leaves_out_what_another_code_was_measured_with(result: Build) -> None:
    cells = [round_cell(64, disks, apparmor=True).id for disks in (1, 2, 4)]
    found = {cell: result(cell, paused(n)) for cell, n in zip(cells, (1.0, 1.2, 1.0), strict=True)}
    found[cells[2]] = result(
        cells[2], paused(0.5), product="def", conditions={"date": "2026-11-25 04:00 UTC"}
    )
    assert verdict(found, "against the shortest").figure == pytest.approx(1.2)


def test_idle_hooks(result: Build) -> None:
    took = {hooks.PYTHON: 0.2, hooks.PRE: 0.8, hooks.POST: 0.9, hooks.PRUNING: 0.4}
    found = {"hooks": result("hooks", {way: {"took_s": [n] * 3} for way, n in took.items()})}
    assert verdict(found, hooks.PRE).said == "met"
    assert verdict(found, hooks.POST).said == "missed by 0.50 times"
    assert verdict(found, hooks.PRUNING).figure == 2.0


def test_own_time_is_what_is_beyond_the_usual_hooks(result: Build) -> None:
    cell = round_cell(64, 1, apparmor=True).id
    figures = {"usual": {"pre_s": [3.0]}, "memory": {"pre_s": [4.5]}}
    one = verdict({cell: result(cell, figures)}, "pre of memory beyond the usual hook, 64 MiB")
    assert (one.figure, one.limit) == (1.5, 2.0)


def test_ways_back(result: Build) -> None:
    counted = {back.BY_HAND: 10.0, back.CLONE: 11.0, back.NO_SAFETY: 13.0, back.RESTORE: 18.0}
    figures: dict[str, Any] = {way: {"next_count_s": [n]} for way, n in counted.items()}
    figures[back.SAVE] = {"took_s": [4.0]}
    found = {"back:64 MiB": result("back:64 MiB", figures)}
    assert verdict(found, "zvmsnap clone, 64 MiB").said == "met"
    assert verdict(found, "restore --no-safety, 64 MiB").said == "missed by 0.10 times"
    assert verdict(found, "the safety point of restore, 64 MiB").figure == 1.25


def test_a_crowd_is_its_slowest_against_the_slowest_alone(result: Build) -> None:
    figures = {
        "memory, alone": {"pause_s": [1.0, 2.0]},
        "memory, all in one round": {"pause_s": [1.0, 3.0]},
        "take, all in one round": {"pause_s": [0.5, 0.9]},
    }
    found = {"10 guests": result("10 guests", figures)}
    assert verdict(found, "memory, slowest of 10 guests").figure == 1.5
    assert verdict(found, "paused, slowest of 10 guests").figure is None
    assert verdict(found, "take of 10 guests").said == "missed by 0.10 s"


def test_memory_names_the_largest_command_also_of_a_busy_machine(result: Build) -> None:
    figures = {"zvmsnap list": {"peak_mib": [40.0, 41.0]}, "hooks": {"peak_mib": [70.0]}}
    found = {"peak memory": result("peak memory", figures, elsewhere_cpus=2.0, repeats=1)}
    one = verdict(found, "memory, peak memory")
    assert (one.what, one.said) == ("memory, peak memory: largest is hooks", "missed by 6.00 MiB")


def shares(measure: str, first: float, second: float) -> dict[str, Any]:
    return {images.FIRST: {measure: [first]}, images.SECOND: {measure: [second]}}


def test_bytes_of_the_second_image_are_said_of_a_busy_machine_and_once(result: Build) -> None:
    vault, sent = image_cell("16K", "zstd").id, image_cell(SENT, "16K").id
    found = {
        vault: result(vault, shares("disk_mib", 200.0, 9.0), elsewhere_cpus=1.5, repeats=1),
        sent: result(sent, shares("wire_mib", 200.0, 24.0), elsewhere_cpus=1.5),
    }
    assert verdict(found, "on the disk").figure == 4.5
    assert verdict(found, "on the disk").said == "met"
    assert verdict(found, "on the way").said == "missed by 2.00 %"
    assert verdict({}, "on the way").said == "not measured"


def test_time_of_an_increment_is_not_said_of_a_busy_machine(result: Build) -> None:
    figures = {
        "snapshot, full": {"took_s": [100.0], "made_mib": [500.0]},
        "snapshot, increment": {"took_s": [7.0], "made_mib": [20.0]},
    }
    found = {BACKUPS: result(BACKUPS, figures)}
    assert verdict(found, "increment against full, time").said == "missed by 2.00 %"
    assert verdict(found, "increment against full, bytes").said == "met"
    found = {BACKUPS: result(BACKUPS, figures, elsewhere_cpus=1.0)}
    assert verdict(found, "increment against full, time").said.startswith("not said: ")
    assert verdict(found, "increment against full, bytes").said == "met"
    assert verdict({}, "increment against full, time").said == "not measured"


@pytest.mark.parametrize(
    ("cell", "apart", "where"),
    [
        (image_cell("16K", "zstd").id, images.APART, "in the lab"),
        (NATIVE, native.APART, "natively"),
    ],
)
def test_speed_of_page_images_is_of_the_vault_that_is_advised_and_of_the_host(
    result: Build, cell: str, apart: str, where: str
) -> None:
    took = {images.SHA256SUM: 2.0, apart: 3.9, images.COPY: 1.0, images.REBUILT: 1.5}
    figures = {way: {"took_s": [seconds] * 3} for way, seconds in took.items()}
    other = image_cell("128K", "zstd").id
    found = {cell: result(cell, figures), other: result(other, {})}
    assert verdict(found, f"{apart} {where}").said == "met"
    assert verdict(found, f"{images.REBUILT} {where}").said == "missed by 0.39 times"
    found[cell] = result(cell, figures, elsewhere_cpus=1.5)
    assert verdict(found, f"{apart} {where}").said.startswith("not said")
