"""Fixtures for tests that need a real host: ZFS, libvirt, AppArmor, a running guest.

A test that asks for `lab` gets a lab fresh from the state `guests`, or from the one it
names with `@pytest.mark.state("ready")`, with the checkout's code at /opt/zvmsnap.
Loading a state takes about two seconds, so every test has a lab nobody has touched.

ZVMSNAP_LAB_KEEP=1 leaves the lab running afterwards, as the last test left it.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from labkit.api import CODE_DIR, Lab, LabError

_DIAGNOSES = (
    "virsh list --all",
    "zfs list -t all",
    "journalctl --no-pager -n 100 -g '^(?!audit.*\"STATUS\")' | tac",  # not each loaded profile
)
_READY_MADE = "with-code"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/lab/faults; here, as pytest reads options of the topmost conftest.py only."""
    parser.addoption("--faults", default="diagonal",
                     help="cells of tests/lab/faults: diagonal, all, missing, or parts of names")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "state(name): the state of the lab a test starts from")


@pytest.fixture(scope="session")
def lab_session() -> Iterator[Lab]:
    """The lab of this test run, which nobody else changes meanwhile."""
    lab = Lab()
    with lab.alone():
        lab.down()
        states = lab.instance.own_states
        for name in states.names():
            if name.endswith(_READY_MADE):
                states.forget(name)
        not_ours = set(states.names())
        try:
            yield lab
        finally:
            if not os.environ.get("ZVMSNAP_LAB_KEEP"):
                lab.down()
                for name in set(states.names()) - not_ours:
                    states.forget(name)


@pytest.fixture
def lab(lab_session: Lab, request: pytest.FixtureRequest) -> Lab:
    """The lab, fresh from the state that the test asks for."""
    marker = request.node.get_closest_marker("state")
    state: str = marker.args[0] if marker else "guests"
    with_code = f"{state}-{_READY_MADE}"
    if with_code not in lab_session.states():
        lab_session.reset(state)
        lab_session.sync()
        lab_session.run(f"python3 -m compileall -q {CODE_DIR}")
        lab_session.save(with_code)
    else:
        lab_session.reset(with_code)
    return lab_session


@pytest.fixture
def other_lab() -> Iterator[Callable[[str], Lab]]:
    """Make further labs, from a state, which run beside the first."""
    made: list[Lab] = []

    def make(state: str = "guests") -> Lab:
        lab = Lab(f"{Lab().instance.name}-other{len(made)}")
        made.append(lab)
        lab.reset(state)
        return lab

    try:
        yield make
    finally:
        for lab in made:
            lab.instance.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None],
                              ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the lab looked like when a test failed."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and call.when == "call" and isinstance(lab, Lab):
        for command in _DIAGNOSES:
            try:
                said = lab.run(command, check=False, timeout_s=60).stdout
            except LabError as exc:
                report.sections.append(("lab console", f"{exc}\n{lab.instance.console()}"))
                break
            report.sections.append((f"lab: {command}", said))
    return report
