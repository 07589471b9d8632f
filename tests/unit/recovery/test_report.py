import pytest

from zvmsnap.recovery.report import Outcome, Report, Result


@pytest.mark.parametrize(
    ("report", "complete"),
    [
        pytest.param(Report(), True, id="nothing"),
        pytest.param(Report(foreign=["x"], removed=["y"]), True, id="foreign and removed"),
        pytest.param(Report(problems=["x"]), False, id="a problem"),
        pytest.param(Report([Outcome("w", "u", (), Result.FAILED)]), False, id="failed"),
        pytest.param(Report([Outcome("w", "u", (), Result.UNDER_WAY)]), True, id="under way"),
        pytest.param(Report([Outcome("w", "u", (), Result.NEEDED)]), True, id="dry run"),
    ],
)
def test_complete(report: Report, complete: bool) -> None:
    assert report.complete is complete
