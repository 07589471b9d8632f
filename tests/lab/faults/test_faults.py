"""No guest is ever left on an overlay: each fault at each step of a real round of sanoid.

`--faults=` says which cells (see matrix.py); by default a few.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter

import pytest

from faults import matrix, results, stages, verdict
from faults.matrix import Cell
from labkit.api import Lab, LabError
from labkit.errors import KernelCrashed

_DIAGNOSIS = (
    "journalctl --no-pager -o short-monotonic -n 80 -g '^(?!audit.*\"STATUS\")' "
    "| tac; cat /root/round.log"
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        cells = matrix.select(metafunc.config.getoption("--faults"))
        metafunc.parametrize("cell", cells, ids=[cell.id for cell in cells])


@pytest.fixture(scope="session")
def sharing(request: pytest.FixtureRequest) -> Counter[str]:
    """How many cells of each row begin from its state."""
    cells = matrix.select(request.config.getoption("--faults"))
    return Counter(cell.row for cell in cells if cell.from_a_state)


def test_no_guest_stays_on_an_overlay(
    cell: Cell, lab_session: Lab, sharing: Counter[str]
) -> None:
    begun_s = time.monotonic()
    try:
        keep = cell.from_a_state and sharing[cell.row] > 1
        durable = cell.fault == matrix.POWER_CUT
        stages.held(lab_session, cell.row, keep=keep, durable=durable)
        story = happen(lab_session, cell)
    except KernelCrashed:
        raise  # says nothing of the cell, which is repeated
    except (LabError, AssertionError) as error:
        story = {"broken": str(error)}
    found = verdict.violations(cell, story)
    print(f"{cell.id} ({cell.route}): {story.get('times')}")
    results.append(
        results.Result(
            cell=cell.id,
            route=cell.route,
            letter=verdict.letter(story),
            recovery_s=story.get("recovery_s", 0.0),
            seconds=time.monotonic() - begun_s,
            violations=found,
            code=results.code(),
        )
    )
    if found:
        said = lab_session.run(_DIAGNOSIS, check=False, timeout_s=60).stdout
        print(json.dumps(story, indent=1), said, sep="\n")
    assert not found, "\n".join([f"{cell.id} ({cell.route})", *found])


def happen(lab: Lab, cell: Cell) -> verdict.Story:
    if cell.fault != matrix.POWER_CUT:
        return stages.tell(lab, "hurt", cell.fault, cell.route)
    before = stages.tell(lab, "before")
    lab.powercut()
    return stages.tell(lab, "after", json.dumps(before))


def test_the_matrix_is_whole() -> None:
    existing = matrix.cells()
    for row, fault in itertools.product(matrix.ROWS, matrix.FAULTS):
        assert (matrix.why_not(row, fault) is None) == any(
            (cell.row, cell.fault) == (row, fault) for cell in existing
        )
    for fault in matrix.FAULTS:
        routes = {cell.route for cell in existing if cell.fault == fault}
        assert routes == ({"boot"} if fault == matrix.POWER_CUT else {*matrix.ROTATED})
    few = matrix.select("few")
    assert len({cell.fault for cell in few}) == len(few) == 5
