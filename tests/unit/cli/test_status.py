import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.replication import send_marks

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_marks, "held_by_destination", dict)


WAY = "a job (backup) on vda"


def test_who_keeps_a_guest_on_its_overlays(
    run: Run, tmp_path: Path, entry: Callable[..., Entry]
) -> None:
    """In `status`, `list` and `recover --dry-run`."""
    Journal(tmp_path / "journal").write(entry(step="commit", in_the_way=WAY))
    line = (
        "web: run autosnap_2026-11-20_03:00:00 is interrupted at step commit (committing): it "
        f"stays on its overlays because of {WAY}; they are merged when that has ended"
    )
    assert line in run("status")[1].splitlines()
    assert json.loads(run("status", "--json")[1])["held_up"] == [line]
    assert line in run("list")[1].splitlines()


def test_status_without_anything(run: Run) -> None:
    assert run("status") == (0, "nothing was ever sent\n", "")
