"""Fixtures for tests that need a real host: ZFS, libvirt, AppArmor, a running guest.

A test that asks for `lab` gets a lab fresh from the state `guests`, or from the one it
names with `@pytest.mark.state("ready")`, with the checkout's code at /opt/zvmsnap.
Loading a state takes about two seconds, so every test has a lab nobody has touched.

With `-n 2` two labs share the tests (pytest-xdist): each worker has its own instance, and all have
the stages together. ZVMSNAP_LAB_KEEP=1 leaves the lab running afterwards, as the last test left it.
"""

import os
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
import scenario

from labkit import image, states, version
from labkit.api import Lab, LabError
from labkit.errors import KernelCrashed

_DIAGNOSES = (
    "virsh list --all",
    "zfs list -t all",
    "journalctl --no-pager -n 40 -g '^(?!audit.*\"STATUS\")' | tac",  # not each loaded profile
)
_CRASH = pytest.StashKey[str]()
_PASSED = pytest.StashKey[frozenset[str]]()
_LATE_TURNS = 3
_LAB = pytest.StashKey[Lab]()
_CPU = "seconds of CPU"
_REPEATED = "repeated as the lab's own kernel crashed"
_GIST_HEAD, _GIST_TAIL = 160, 240


def pytest_addoption(parser: pytest.Parser) -> None:
    """For tests/lab/faults; here, as pytest reads options of the topmost conftest.py only."""
    parser.addoption("--faults", default="few",
                     help="cells of the fault tests: few, all, or parts of names")
    parser.addoption("--missing", action="store_true",
                     help="leave out what has passed with the code of now (build/lab.jsonl)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, and say which code this run is of."""
    config.addinivalue_line("markers", "state(name): the state of the lab a test starts from")
    config.addinivalue_line("markers", "long: takes minutes, so it is begun first")
    config.addinivalue_line("markers", "late: begun later, as what it begins from is made slowly")
    config.addinivalue_line("markers", "whole: other scenarios, or cells of the fault matrix, are "
                            "the like; it is left to `--faults=all`, unless it is named")
    if not config.getoption("--missing"):
        passed = []
    elif _is_worker(config):
        passed = config.workerinput["passed"]  # type: ignore[attr-defined]
    else:
        passed = record.passed()
    config.stash[_PASSED] = frozenset(passed)
    if not _is_worker(config):
        version.all_of_it()
        config.pluginmanager.register(_Recorder())


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what has passed: all must leave out the same."""
    node.workerinput["passed"] = sorted(node.config.stash[_PASSED])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for; put the others in the order that two labs like best."""
    whole = config.getoption("--faults") == "all" or config.getoption("-k")
    passed = config.stash[_PASSED]
    wanted = [item for item in items
              if (whole or not item.get_closest_marker("whole")) and item.nodeid not in passed]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = _in_turns(wanted) if _is_worker(config) else wanted


def _in_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """What takes long first; then one of each file in turn, as those of a file share a stage.

    So no lab waits for a stage that the other one makes, and both end at about the same time.
    """
    turns: Counter[Path] = Counter()
    places: list[tuple[bool, int, int]] = []
    for item in items:
        long = item.get_closest_marker("long") is not None
        late = _LATE_TURNS if item.get_closest_marker("late") else 0
        places.append((not long, turns[item.path] + late, len(places)))
        turns[item.path] += 1
    return [items[place[-1]] for place in sorted(places)]


class _Recorder:
    """Keeps what became of each test, in the process that hears of all of them."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._bad: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration  # type: ignore[assignment]
        if not report.passed:
            sections = "\n".join(f"{title}\n{text}" for title, text in report.sections)
            self._bad.setdefault(report.nodeid, f"{report.longreprtext}\n{sections}")
        if report.when == "teardown":
            record.append(record.Outcome(
                test=report.nodeid, passed=report.nodeid not in self._bad,
                seconds=round(self._seconds.pop(report.nodeid), 1),
                cpu_s=float(str(dict(report.user_properties).get(_CPU, 0))),
                code=record.code_of(report.nodeid), why=self._bad.get(report.nodeid, "")))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """All has passed: nobody needs the stages any more. Else they are for the next run."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash[_PASSED]:
            exitstatus = session.exitstatus = pytest.ExitCode.OK  # all has passed before
        if exitstatus == pytest.ExitCode.OK and not os.environ.get("ZVMSNAP_LAB_KEEP"):
            states.forget_stages(image.image(), but_of_now=False)


@pytest.fixture(scope="session")
def lab_session(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The lab of this test run, which nobody else changes meanwhile."""
    lab = pytestconfig.stash[_LAB] = Lab()
    with lab.alone():
        lab.down()
        own = lab.instance.own_states
        not_ours = set(own.names())
        in_use = states.stages_in_use(image.image())
        states.forget_stages(image.image(), but_of_now=True)
        try:
            yield lab
        finally:
            if not os.environ.get("ZVMSNAP_LAB_KEEP"):
                lab.down()
                for name in set(own.names()) - not_ours:
                    own.forget(name)
            os.close(in_use)


@pytest.fixture
def lab(lab_session: Lab, request: pytest.FixtureRequest) -> Lab:
    """The lab, fresh from the state that the test asks for."""
    marker = request.node.get_closest_marker("state")
    scenario.with_code(lab_session, marker.args[0] if marker else "guests")
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
    begun_s = _cpu_s(item.config)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    crash = item.stash.get(_CRASH, "")
    if crash:
        # Seen in the summary, which another process writes if there are workers.
        item.user_properties.append((_REPEATED, crash.splitlines()[0]))
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    reports[-1].user_properties.append((_CPU, round(_cpu_s(item.config) - begun_s, 1)))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _cpu_s(config: pytest.Config) -> float:
    """Seconds of CPU that all which this process started has had so far, its lab before all."""
    over = resource.getrusage(resource.RUSAGE_CHILDREN)
    lab = config.stash.get(_LAB, None)
    note = lab.instance.running() if lab else None
    return over.ru_utime + over.ru_stime + (note.process.cpu_s() if note else 0.0)


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
    repeated = {f"{report.nodeid}: {why}" for reports in terminalreporter.stats.values()
                for report in reports for what, why in getattr(report, "user_properties", ())
                if what == _REPEATED}
    if repeated:
        terminalreporter.section(f"TESTS {_REPEATED}")
        for line in sorted(repeated):
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
