"""The table at the end of the run."""

from __future__ import annotations

import os

import pytest

from faults import results


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the table up to date, so that it may be looked at meanwhile."""
    of_a_cell = report.when == "call" and "faults/test_faults.py" in report.nodeid
    if of_a_cell and not os.environ.get("PYTEST_XDIST_WORKER"):
        results.write_table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if cells were run."""
    reports = [report for each in terminalreporter.stats.values() for report in each]
    if any("faults/test_faults.py" in getattr(report, "nodeid", "") for report in reports):
        terminalreporter.section("faults")
        terminalreporter.write(results.write_table())
        terminalreporter.write_line(f"also in {results.TABLE}")
