import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.host import FakeHost
from zvmsnap.cli.main import only_reads
from zvmsnap.points.manifest import Manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _with_guests(host: FakeHost) -> None:
    """A host whose libvirt answers."""


def test_a_page_of_the_points(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    put(manifest(domain="<web>"))
    file = tmp_path / "report.html"
    file.write_text("an earlier one")
    assert run("report", "--html", str(file)) == (0, f"wrote {file}: 1 points of 1 guests\n", "")
    page = file.read_text()
    assert page.startswith("<!DOCTYPE html>\n<html ") and page.endswith("</html>")
    assert "&lt;web&gt;" in page and "<web>" not in page
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob(".report*")] == []


def test_of_an_empty_vault(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("report", "--html", str(tmp_path / "r.html"))
    assert (code, out.endswith(": 0 points of 0 guests\n")) == (0, True)


def test_a_file_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    for file, why in (
        (tmp_path / "none" / "r.html", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        code, out, err = run("report", "--html", str(file))
        assert (code, out) == (1, "")
        assert err.endswith(f"error: {file}: cannot be written: {why}\n")


def test_it_must_be_said_where_to(run: Run) -> None:
    code, _, err = run("report")
    assert code == 2 and "--html" in err


def test_it_may_be_given_up() -> None:
    assert only_reads(["report", "--html", "x"])


def test_a_damaged_point_is_told_in_the_page(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    (put(manifest()) / "manifest.json").write_text(json.dumps({"schema": 99}))
    file = tmp_path / "r.html"
    assert run("report", "--html", str(file))[0] == 0
    assert "schema 99 is not one this version reads" in file.read_text()
