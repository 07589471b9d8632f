"""The site of the documents: `make docs` builds it, and refuses links that lead nowhere."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="no mkdocs: see pyproject"),
    pytest.mark.skipif(not shutil.which("make"), reason="no make"),
]


def built(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "site", f"PYTHON={sys.executable}", f"SITE={site}"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs") / "site"
    done = built(CHECKOUT, directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the site is made of."""
    copy = tmp_path / "checkout"
    unneeded = shutil.ignore_patterns(".*", "build", "zvmsnap", "unit", "scenarios", "fakes")
    shutil.copytree(CHECKOUT, copy, ignore=unneeded)
    return copy


def test_every_page_is_there(site: Path) -> None:
    pages = [page.relative_to(CHECKOUT) for page in (CHECKOUT / "docs").rglob("*.md")]
    assert len(pages) > 15
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    assert "really be brought back" in (site / "index.html").read_text()


def test_it_is_read_without_a_server_and_loads_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert loaded
        assert [each for each in loaded if re.match(r"(?:[a-z]+:)?//", each)] == [], page
        if page.name == "404.html":  # only a server shows it
            continue
        assert [each for each in loaded if each.startswith("/")] == [], page


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](report.md#nowhere)", "#nowhere"),
        ("[x](/docs/how-to/report.md)", "absolute"),
    ],
)
def test_a_link_that_leads_nowhere(checkout: Path, tmp_path: Path, broken: str, why: str) -> None:
    page = checkout / "docs" / "how-to" / "take.md"
    page.write_text(f"{page.read_text()}\n{broken}\n")
    done = built(checkout, tmp_path / "site")
    assert done.returncode != 0
    assert why in done.stderr and "take.md" in done.stderr


def test_a_page_that_the_list_does_not_name(checkout: Path, tmp_path: Path) -> None:
    (checkout / "docs" / "how-to" / "new.md").write_text("# New\n")
    done = built(checkout, tmp_path / "site")
    assert done.returncode != 0 and "docs/how-to/new.md" in done.stderr
