"""take --keep: what was taken by hand goes again, in its turn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.faketake import DB, WEB, Pool, configure, two_guests
from zvmsnap import take, vault, zfs
from zvmsnap.config import Config
from zvmsnap.zfs import Answer, Use

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    found = Pool(tmp_path)
    found.install(monkeypatch)
    return found


@pytest.fixture
def run(
    tmp_path: Path,
    config: Config,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> Run:
    two_guests(tmp_path, config, monkeypatch)
    configure(tmp_path, config, monkeypatch)
    return command


def numbered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names as those that are made up, of one second after the other."""
    names = [f"zvmsnap_2026-11-21T10:00:0{number}Z_manual" for number in range(10)]
    left = iter(names)
    monkeypatch.setattr(take, "default_name", lambda: next(left))
    return names


def kept(pool: Pool) -> list[str]:
    return sorted(pool.present)


def test_keep(run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = numbered(monkeypatch)
    for name in names[:2]:
        assert run("take", "web", "--keep", "2")[:2] == (0, f"web@{name}: memory\n")
    code, out, _ = run("take", "web", "--keep", "2")
    assert (code, out) == (0, f"web@{names[2]}: memory\ndropped web@{names[0]}\n")
    assert kept(pool) == [f"{WEB}@{name}" for name in names[1:3]]
    code, out, _ = run("take", "web", "--keep", "1", "--dry-run")
    assert out.splitlines()[2:] == [f"would drop web@{name}" for name in names[1:3]]
    assert len(pool.present) == 2
    code, out, _ = run("take", "web", "--keep", "1", "--json")
    assert json.loads(out)["dropped"] == [f"web@{name}" for name in names[1:3]]
    assert kept(pool) == [f"{WEB}@{names[4]}"]
    assert json.loads(run("take", "web", "--json")[1])["dropped"] == []


def test_keep_counts_for_each_guest_what_was_named_so(
    run: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = numbered(monkeypatch)
    others = ("before-upgrade", "zvmsnap_manual", "autosnap_2026-11-20_03:00:00_hourly")
    for name in others:
        assert run("take", "web", "--name", name)[0] == 0
    assert run("take", "db")[0] == 0
    assert run("take", "web", "db")[0] == 0
    code, out, _ = run("take", "web", "--keep", "1")
    assert (code, out.splitlines()[1:]) == (0, [f"dropped web@{names[1]}"])
    assert kept(pool) == sorted(
        [
            *(f"{DB}@{name}" for name in names[:2]),
            *(f"{WEB}@{name}" for name in (*others, names[2])),
        ]
    )
    code, out, _ = run("take", "web", "db", "--keep", "1")
    assert set(out.splitlines()[2:]) == {
        *(f"dropped db@{name}" for name in names[:2]),
        f"dropped web@{names[2]}",
    }


def test_keep_leaves_what_cannot_go(run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = numbered(monkeypatch)
    for _ in range(3):
        run("take", "web")
    held = f"{WEB}@{names[0]}"
    pool.uses[held] = Use(pool.present[held], (), 1)
    code, out, err = run("take", "web", "--keep", "1")
    assert code == 0
    assert out.splitlines()[1:] == [f"dropped web@{name}" for name in names[1:3]]
    assert f"web@{names[0]}: kept: {held}: is held" in err
    assert kept(pool) == [held, f"{WEB}@{names[3]}"]


def test_what_was_not_taken_makes_nothing_surplus(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch)
    run("take", "web")
    before = kept(pool)
    pool.fails_after = 0
    assert run("take", "web", "--keep", "1")[0] == 1
    assert kept(pool) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "1", "--name", "x"], "--keep counts the names that are made here"),
        (["--keep", "0"], "--keep"),
        (["--keep", "x"], "--keep"),
    ],
)
def test_keep_that_makes_no_sense(run: Run, pool: Pool, options: list[str], says: str) -> None:
    code, out, err = run("take", "web", *options)
    assert (code, out, pool.present) == (2, "", {})
    assert says in err


def test_nothing_goes_while_its_pool_is_not_imported(
    run: Run, pool: Pool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("take", "web", "--name", "x")
    monkeypatch.setattr(zfs, "all_snapshots", lambda: Answer({}, frozenset({"other"})))
    code, _, err = run("drop", "--yes", "web@x")
    assert code == 1 and f"{WEB}@x: its pool is not imported" in err
    assert kept(pool) == [f"{WEB}@x"]
    assert [point.name for point in vault.read(config)[0]] == ["web@x"]
