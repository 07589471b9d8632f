import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from zvmsnap.common.process import Process
from zvmsnap.journal import describe
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.operation import CloneOperation, RestoreOperation, StartState


@pytest.mark.parametrize(
    ("kind", "step", "alive", "line"),
    [
        pytest.param(
            CloneOperation,
            "disks",
            True,
            f"clone of web@m is under way at step disks (pid {os.getpid()})",
            id="under way",
        ),
        (
            CloneOperation,
            "",
            False,
            "clone of web@m was interrupted at step none: zvmsnap recover ends it",
        ),
        (
            RestoreOperation,
            "undo stop",
            False,
            "restore of web@m was interrupted at step undo stop: zvmsnap recover ends it",
        ),
    ],
)
def test_task(
    kind: type[CloneOperation | RestoreOperation], step: str, alive: bool, line: str
) -> None:
    common: dict[str, Any] = {
        "domain": "web",
        "uuid": "u",
        "point": "web@m",
        "directory": "/v/web/m",
        "owner": Process.of(os.getpid()) if alive else Process.none(),
        "step": step,
        "memory": True,
        "start_state": StartState.RUNNING,
        "capture": "c",
    }
    own: dict[str, Any] = (
        {"network": "none"}
        if kind is CloneOperation
        else {"guest_existed": True, "was_active": True, "was_paused": False, "saves_memory": True}
    )
    assert describe.operation(kind(**common, **own)) == line


@pytest.mark.parametrize(
    ("changes", "work", "progress"),
    [
        pytest.param(
            {"step": "dump", "owner": Process.of(os.getpid())},
            "run autosnap_2026-11-20_03:00:00",
            f"under way at step dump (dumping; sanoid has pid {os.getpid()})",
            id="under way",
        ),
        pytest.param(
            {"step": "store"},
            "run autosnap_2026-11-20_03:00:00",
            "interrupted at step store (publishing): zvmsnap recover ends it",
            id="interrupted",
        ),
        pytest.param(
            {"step": "commit", "in_the_way": "a job (backup) on vda"},
            "run autosnap_2026-11-20_03:00:00",
            "interrupted at step commit (committing): it stays on its overlays because of a job "
            "(backup) on vda; they are merged when that has ended",
            id="somebody else is in the way",
        ),
        pytest.param(
            {
                "snapshot_names": (),
                "run": "",
                "backup": "/backup",
                "step": "frozen",
                "owner": Process.of(os.getpid()),
            },
            "a backup to /backup",
            f"under way at step frozen (preparing; zvmsnap backup has pid {os.getpid()})",
            id="a backup",
        ),
        pytest.param(
            {"snapshot_names": (), "run": ""},
            "a recovery",
            "interrupted at step none (on overlays): zvmsnap recover ends it",
            id="a recovery without a step",
        ),
    ],
)
def test_open_entry(
    entry: Callable[..., Entry], changes: Mapping[str, Any], work: str, progress: str
) -> None:
    assert (describe.work(entry(**changes)), describe.progress(entry(**changes))) == (
        work,
        progress,
    )
