from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.retention import leftovers
from zvmsnap.retention.leftovers import Leftovers

UUID = "c0ffee00-0000-4000-8000-000000000001"


def capture(config: Config, number: int, *, overlay: bool, point: bool) -> StagingDir:
    made = StagingDir(config.staging_dir / f"{UUID}.{number:08x}")
    made.make()
    if overlay:
        made.overlay("vda").write_bytes(b"writes")
    if point:
        made.memory.write_bytes(b"RAM")
    else:
        made.point.rmdir()
    return made


@pytest.mark.parametrize("known", [True, False], ids=["in the journal", "unknown"])
@pytest.mark.parametrize(
    ("overlay", "point", "removed"),
    [
        pytest.param(True, True, "point", id="overlay and point"),
        pytest.param(True, False, "", id="overlay"),
        pytest.param(False, True, "all", id="point"),
        pytest.param(False, False, "all", id="empty"),
    ],
)
def test_staging(
    config: Config,
    entry: Callable[..., Entry],
    known: bool,
    overlay: bool,
    point: bool,
    removed: str,
) -> None:
    made = capture(config, 1, overlay=overlay, point=point)
    if known:
        Journal(config.journal_dir).write(entry(capture=made.path.name))
    expected = Leftovers(
        [] if known or not removed else [made.path if removed == "all" else made.point],
        [made.overlay("vda")] if overlay and not known else [],
    )
    unneeded = leftovers.find(config)
    assert unneeded == expected
    unneeded.remove()
    assert made.overlay("vda").exists() is overlay
    assert made.path.exists() is (known or removed != "all")
    assert made.point.exists() is (point and (known or not removed))


@pytest.mark.parametrize("known", [True, False], ids=["in the journal", "unknown"])
def test_vault(config: Config, entry: Callable[..., Entry], known: bool) -> None:
    incoming = vault.incoming(config.vault_dir, "web", f"{UUID}.00000001")
    removing = config.vault_dir / "web" / ".removing-x"
    removing.mkdir()
    foreign = config.vault_dir / "web" / ".zfs"
    foreign.mkdir()
    if known:
        Journal(config.journal_dir).write(entry(capture=f"{UUID}.00000001"))
    unneeded = leftovers.find(config)
    assert unneeded == Leftovers([removing] if known else [incoming, removing])
    unneeded.remove()
    assert incoming.exists() is known
    assert not removing.exists()
    assert foreign.exists()


def test_a_run_that_begins_meanwhile_leaves_nothing(
    config: Config, entry: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen in staging has its entry by the time the journal is read."""
    made = capture(config, 1, overlay=False, point=True)
    entries = Journal.entries

    def begun(journal: Journal) -> list[Entry]:
        journal.write(entry(capture=made.path.name))
        return entries(journal)

    monkeypatch.setattr(Journal, "entries", begun)
    assert leftovers.find(config) == Leftovers()


def test_no_directories(config: Config) -> None:
    assert leftovers.find(config) == Leftovers()
    assert not Path(config.journal).exists()


def test_a_path_that_is_gone_already(config: Config) -> None:
    gone, other = (capture(config, number, overlay=False, point=True) for number in (1, 2))
    unneeded = leftovers.find(config)
    gone.remove()
    unneeded.remove()
    assert not other.path.exists()
