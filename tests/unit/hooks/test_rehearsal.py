import logging
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.common.process import Process
from zvmsnap.hooks import rehearsal
from zvmsnap.hooks.callers import Caller
from zvmsnap.hooks.rehearsal import Rehearsal
from zvmsnap.journal.round import Round

OWNER = Process.of(os.getpid())
MARKS = "# Config::IniFiles zfs_recursion SANOID_TARGET\n"
# Writes down how it was called, and what its cache has; then it prints what sanoid prints.
SANOID = (
    MARKS
    + r"""
open my $told, '>>', $ENV{TOLD}; print $told "@ARGV\n";
my ($cache) = grep { s/^--cache-dir=// } my @words = @ARGV;
print $told map { -f "$cache/$_" ? "$_ " . (-s _) . "\n" : () } 'snapshots.txt', 'datasets.txt';
print "INFO: taking snapshots...\n";
print "executing pre_snapshot_script '/x' on dataset 'tank/vm'\n";
print "taking snapshot $_\n" for 'tank/vm@autosnap_2026-11-26_00:00:00_daily (zfs recursive)',
    'tank/vm@autosnap_2026-11-26_00:00:00_hourly (zfs recursive)',
    'tank/my vm@autosnap_2026-11-26_00:00:00_hourly (zfs recursive)',
    'tank/one@autosnap_2026-11-26_00:00:00_hourly';
"""
)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the sanoid that was asked has written down."""
    told = tmp_path / "told"
    monkeypatch.setenv("TOLD", str(told))
    monkeypatch.setattr(rehearsal, "_PATH", "")
    return told


Make = Callable[..., Rehearsal]


@pytest.fixture
def make(tmp_path: Path, told: Path) -> Make:
    """A rehearsal of a sanoid of that text, under a name of its own, with options."""

    def make(text: str = SANOID, *options: str, configured: str = "") -> Rehearsal:
        script = tmp_path / ".sanoid-wrapped"
        script.write_text(text)
        program = ("perl", str(script))
        caller = Caller(os.getpid(), (*program, *options), math.inf, sanoid=program)
        return Rehearsal(caller, configured, Round(tmp_path / "locks", OWNER))

    return make


def by_hand(tmp_path: Path, configdir: Path) -> Rehearsal:
    caller = Caller(os.getpid(), (), 0.0)
    return Rehearsal(caller, str(configdir), Round(tmp_path / "locks", OWNER))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_calling_program_is_asked_once_in_a_round(
    make: Make, tmp_path: Path, told: Path
) -> None:
    asked = make(SANOID, "--cron", "--configdir", "/etc/vm", "--cache-dir=/no/such")
    datasets = ("tank/vm", "tank/my vm", "tank/one", "tank", "tank/vm/web")
    assert [name for name in datasets if asked.takes_recursively(name)] == ["tank/vm", "tank/my vm"]
    # The hook of the next dataset is another process.
    assert make().takes_recursively("tank/my vm")
    words, cached = told.read_text().splitlines()
    assert words.startswith("--configdir=/etc/vm --cache-dir=")
    assert words.endswith(" --take-snapshots --readonly --verbose")
    assert cached == "snapshots.txt 0"
    assert not asked.unanswered
    # Nothing but the notes is left.
    assert [path.name for path in (tmp_path / "locks").glob("*/*")] == ["notes.json"]


def test_it_sees_the_datasets_that_the_caller_has_listed(
    make: Make, tmp_path: Path, told: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "datasets.txt").write_text("tank\ntank/vm\n")
    assert make(SANOID, f"--cache-dir={tmp_path}/cache").takes_recursively("tank/vm")
    words, *cached = told.read_text().splitlines()
    assert "--configdir" not in words
    assert f"--cache-dir={tmp_path}/cache" not in words
    assert cached == ["snapshots.txt 0", "datasets.txt 13"]


def test_a_sanoid_whose_cache_has_a_fixed_place(make: Make, told: Path) -> None:
    text = SANOID.replace("cache-dir", "a")
    assert make(text).takes_recursively("tank/vm")
    assert told.read_text().splitlines()[0] == "--take-snapshots --readonly --verbose"


EXPIRED = "INFO: cache expired - updating from zfs list."
FORCED = "INFO: cache forcibly expired - updating from zfs list."
DEFERRED = "INFO: deferring cache update - valid cache update lock held by another sanoid process."


def lists(line: str, seconds: str) -> str:
    return f"""
        print "{line}\\n"; open my $listed, '-|', 'sleep', '{seconds}'; my @all = <$listed>;
        print $told "listed\\n";
    """


@pytest.mark.parametrize("line", [EXPIRED, FORCED, DEFERRED])
def test_who_has_said_all_is_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """sanoid up to 2.2 lists all snapshots of the host at the end of its round."""
    monkeypatch.setattr(rehearsal, "_LIMIT_S", 20)
    asked = make(SANOID + lists(line, "300"))
    assert asked.takes_recursively("tank/my vm")
    assert not asked.unanswered


def test_a_listing_before_it_takes_snapshots_is_not_the_end(make: Make) -> None:
    """sanoid 2.0, whose cache is old, tells of it first."""
    early = lists(EXPIRED, "0.2")
    assert make(SANOID.replace("print", early + "print", 1)).takes_recursively("tank/my vm")


@pytest.mark.parametrize(("seconds", "ends"), [("0.5", True), ("300", False)])
def test_a_sanoid_whose_cache_and_lock_are_the_callers_is_not_waited_for_long(
    make: Make, monkeypatch: pytest.MonkeyPatch, told: Path, seconds: str, ends: bool
) -> None:
    monkeypatch.setattr(rehearsal, "_COMPLETE_LIMIT_S", 60 if ends else 0.3)
    text = SANOID.replace("cache-dir", "a") + lists(EXPIRED, seconds)
    assert make(text).takes_recursively("tank/my vm")
    assert told.read_text().endswith("listed\n") is ends


def test_the_configured_directory_comes_before_the_callers(make: Make, told: Path) -> None:
    assert make(SANOID, "--configdir=/a", configured="/b").takes_recursively("tank/vm")
    assert told.read_text().startswith("--configdir=/b ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            MARKS + "die qq(FATAL: cannot load it\\n);",
            "sanoid, asked what it snapshots, has failed (255): FATAL: cannot load it",
            id="fails",
        ),
        pytest.param(
            MARKS + "use No::Such::Module;", "BEGIN failed--compilation aborted", id="no module"
        ),
        pytest.param(MARKS + "sleep 300;", "no answer: given up after 0.3 s", id="hangs"),
        pytest.param("unlink $0;", "it is no sanoid", id="another program"),
    ],
)
def test_without_an_answer_it_is_not_recursive_and_that_is_said_once(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    says: str,
) -> None:
    if "given up after 0.3 s" in says:
        monkeypatch.setattr(rehearsal, "_LIMIT_S", 0.3)
    asked = make(text)
    assert not asked.takes_recursively("tank/vm")
    assert asked.unanswered
    (error,) = errors(caplog)
    assert says in error
    assert "no snapshot counts as recursive, and guests on datasets below tank/vm and" in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / ".sanoid-wrapped").exists()  # what is no sanoid is not even begun
    # Nor does the hook of the next dataset wait for it.
    again = make(text)
    assert not again.takes_recursively("tank/one")
    assert not again.unanswered
    assert errors(caplog) == [error]


def test_sanoid_conf_that_is_a_pipe(make: Make, tmp_path: Path, told: Path) -> None:
    """It is for sanoid to read it: nothing here does."""
    os.mkfifo(tmp_path / "sanoid.conf")
    assert make(SANOID, configured=str(tmp_path)).takes_recursively("tank/vm")


@pytest.mark.usefixtures("told")
def test_by_hand_without_sanoid_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/no/such")
    asked = by_hand(tmp_path, tmp_path)
    assert not asked.takes_recursively("tank/vm")
    assert (asked.unanswered, errors(caplog)) == (False, [])
    (tmp_path / "sanoid.conf").touch()
    assert not asked.takes_recursively("tank/vm")
    assert asked.unanswered
    (error,) = errors(caplog)
    assert error.startswith("sanoid cannot be asked what it snapshots: it is not in PATH: so in")


def test_by_hand_the_sanoid_in_path_is_asked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Path
) -> None:
    perl = subprocess.run(["which", "perl"], check=True, capture_output=True, text=True).stdout
    (tmp_path / "sanoid").write_text(f"#!{perl}{SANOID}")
    (tmp_path / "sanoid").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sanoid.conf").touch()
    asked = by_hand(tmp_path, tmp_path)
    assert asked.takes_recursively("tank/vm")
    assert not asked.takes_recursively("tank/one")
    assert told.read_text().count("--take-snapshots") == 2
