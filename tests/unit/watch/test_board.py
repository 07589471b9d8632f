"""The board for Grafana and the alert rules ask for metrics and labels that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
BOARD = CHECKOUT / "docs" / "grafana.json"
ALERTS = CHECKOUT / "docs" / "alerts.yml"
PAGE = CHECKOUT / "docs" / "how-to" / "watching.md"
NAME = re.compile(r"\bzvmsnap_\w+")
SELECTOR = re.compile(r"\b(zvmsnap_\w+)\{([^}]*)\}")
# What Prometheus itself adds.
ADDED = {"instance", "job"}


def queries() -> Iterator[str]:
    board: dict[str, Any] = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    yield from re.findall(r"expr: (?:>-)?(.*?)\n +(?:for|labels):", ALERTS.read_text(), re.S)


def described() -> dict[str, set[str]]:
    """Every metric of the page, with its labels."""
    rows = re.findall(r"^\| (`zvmsnap_[^|]*) \|([^|]*)\|", PAGE.read_text(), re.M)
    return {
        name: set(re.findall(r"`(\w+)`", labels))
        for names, labels in rows
        for name in NAME.findall(names)
    }


def labels_of(written: bytes) -> dict[str, set[str]]:
    """Every metric of the file, with its labels."""
    found: dict[str, set[str]] = {}
    for name, _, labels in re.findall(r"^(zvmsnap_\w+)(\{(.*)\})? ", written.decode(), re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_the_page_has_each_metric_with_its_labels(written: bytes) -> None:
    assert described() == labels_of(written)


def test_queries_name_what_there_is(written: bytes) -> None:
    there = labels_of(written)
    asked = list(queries())
    assert len(asked) > 20
    for query in asked:
        assert set(NAME.findall(query)) and set(NAME.findall(query)) <= there.keys(), query
        for name, selectors in SELECTOR.findall(query):
            labels = set(re.findall(r"(\w+)(?:=~|!=|!~|=)", selectors))
            assert labels <= there[name] | ADDED, query


def test_places_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(BOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & taken and at["x"] + at["w"] <= 24
        taken |= own


def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed: apt install prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
