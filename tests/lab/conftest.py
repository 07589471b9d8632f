"""Fixtures for tests that need a real host: ZFS, libvirt, AppArmor, a running guest.

A test that asks for `lab` gets a lab fresh from the state `guests`, or from the one it
names with `@pytest.mark.state("ready")`, with the checkout's code at /opt/zvmsnap.
Loading a state takes about two seconds, so every test has a lab nobody has touched.

ZVMSNAP_LAB_KEEP=1 leaves the lab running afterwards, as the last test left it.
"""

import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

sys.path.insert(0, str(Path(__file__).resolve().parent))

from labkit.api import CODE_DIR, Lab, LabError
from labkit.errors import KernelCrashed

_DIAGNOSES = (
    "virsh list --all",
    "zfs list -t all",
    "journalctl --no-pager -n 40 -g '^(?!audit.*\"STATUS\")' | tac",  # not each loaded profile
)
_READY_MADE = "with-code"
_CRASH = pytest.StashKey[str]()
_REPEATED = pytest.StashKey[list[str]]()
_GIST_HEAD, _GIST_TAIL = 160, 240


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/lab/faults; here, as pytest reads options of the topmost conftest.py only."""
    parser.addoption("--faults", default="few",
                     help="cells of the fault tests: few, all, missing, or parts of names")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "state(name): the state of the lab a test starts from")
    config.addinivalue_line("markers", "whole: other scenarios, or cells of the fault matrix, are "
                            "the like; it is left to `--faults=all`, unless it is named")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the fault matrix has a part in, as `make test` must end some time."""
    if config.getoption("--faults") == "all" or config.getoption("-k"):
        return
    left_out = [item for item in items if item.get_closest_marker("whole")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


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
    """Show what the lab looked like when a test failed, and note if its own kernel crashed."""
    report = yield
    if not report.failed or call.excinfo is None:
        return report
    lab = getattr(item, "funcargs", {}).get("lab_session")
    crash: BaseException | None = call.excinfo.value
    if not isinstance(crash, KernelCrashed):
        crash = lab.instance.why_dead() if isinstance(lab, Lab) else None
    if isinstance(crash, KernelCrashed):
        item.stash[_CRASH] = str(crash)
        report.sections.append(("lab console", str(crash)))
    elif isinstance(lab, Lab) and call.when == "call":
        for command in _DIAGNOSES:
            try:
                said = lab.run(command, check=False, timeout_s=60).stdout
            except LabError as exc:
                report.sections.append(("lab console", f"{exc}\n{lab.instance.console()}"))
                break
            report.sections.append((f"lab: {command}", said))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test once more, from a fresh lab, if the lab's emulated kernel crashed under it.

    For that alone: it says nothing of what was tested, and happens under QEMU's emulation.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    crash = item.stash.get(_CRASH, "")
    if crash:
        repeated = item.config.stash.setdefault(_REPEATED, [])
        repeated.append(f"{item.nodeid}: {crash.splitlines()[0]}")
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config,
                            ) -> Generator[None, None, None]:
    """Say in one line each, before all details, what failed and what was repeated."""
    broken = [report for outcome in ("failed", "error")
              for report in terminalreporter.getreports(outcome)]
    if broken:
        terminalreporter.section("failures, one line each")
        for report in broken:
            terminalreporter.write_line(f"{report.nodeid}: {_gist(report.longreprtext)}")
    repeated = config.stash.get(_REPEATED, [])
    if repeated:
        terminalreporter.section("REPEATED as the lab's own kernel crashed")
        for line in repeated:
            terminalreporter.write_line(line)
    yield


def _gist(text: str) -> str:
    """Of a failure: where in the test, its message, what was asserted."""
    lines = text.splitlines()
    where = [line for line in lines if re.match(r"\S+\.py:\d+: ", line)]
    message = [line[1:].strip() for line in lines if re.match(r"E\s", line)] or lines[-1:]
    asserted = [line for line in message[1:] if line.startswith("assert ")]
    if asserted:
        message = message[: message.index(asserted[0])]
    parts = [*where[:1], " ".join(message), *asserted[:1]]
    # What a command said last, on stderr, stands at the end of a message.
    return " | ".join(part if len(part) <= _GIST_HEAD + _GIST_TAIL
                      else f"{part[:_GIST_HEAD]} ... {part[-_GIST_TAIL:]}" for part in parts)
