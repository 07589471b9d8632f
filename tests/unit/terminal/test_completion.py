import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import zvmsnap
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.terminal import completion

THREE, FOUR = "autosnap_2026-11-20_03:00:00", "autosnap_2026-11-20_04:00:00"


@pytest.fixture
def points(manifest: Callable[..., Manifest]) -> list[RestorePoint]:
    return [
        RestorePoint(
            Path("/v", domain, run_name),
            manifest(
                domain=domain,
                run=run_name,
                snapshots=(SnapshotRef("t/x", f"{run_name}_hourly", 1, 1),),
            ),
        )
        for domain, run_name in (("web", THREE), ("web", FOUR), ("mail", THREE), ("wiki", THREE))
    ]


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        pytest.param("", ["mail@", "web@", "wiki@"], id="guests"),
        pytest.param("w", ["web@", "wiki@"], id="some guests"),
        pytest.param("m", ["mail@" + n for n in (THREE, f"{THREE}_hourly", "latest")], id="one"),
        pytest.param("web@l", ["web@latest"], id="latest"),
        pytest.param(f"web@{FOUR}", [f"web@{FOUR}", f"web@{FOUR}_hourly"], id="names"),
        pytest.param("web@x", [], id="no such name"),
        pytest.param("x", [], id="no such guest"),
    ],
)
def test_words(points: list[RestorePoint], incomplete: str, expected: list[str]) -> None:
    assert completion.words(points, incomplete) == expected


def test_no_completion_that_needs_quotes(manifest: Callable[..., Manifest]) -> None:
    point = RestorePoint(Path("/v/$(x)/m"), manifest(domain="$(x)"))
    assert completion.words([point], "") == []


@pytest.mark.parametrize(
    ("words", "at", "joined", "cut_off"),
    [
        pytest.param("show|we", 2, "show|we", "", id="not split"),
        pytest.param("show|", 2, "show|", "", id="nothing yet"),
        pytest.param("show|web|@", 3, "show|@", "web", id="@ stays"),
        pytest.param("show|web|@|au", 4, "show|@au", "web", id="behind @"),
        pytest.param("show|web|@|a_03|:", 5, "show|", "web@a_03:", id=": does not stay"),
        pytest.param("show|web|@|a_03|:|0", 6, "show|0", "web@a_03:", id="behind :"),
        pytest.param("show|web|@|a_03|:|0|--json", 6, "show|0", "web@a_03:", id="in the middle"),
        pytest.param("show|--json|web|@|a", 5, "show|--json|@a", "web", id="behind an option"),
        pytest.param("show|web@a_03|:|0", 4, "show|0", "web@a_03:", id="split at : alone"),
        pytest.param("show|web@a", 2, "show|web@a", "", id="split at nothing"),
    ],
)
def test_join_words_of_bash(words: str, at: int, joined: str, cut_off: str) -> None:
    environ = {
        "_ZVMSNAP_COMPLETE": "complete_bash",
        "COMP_WORDS": f"zvmsnap|{words}".replace("|", "\n"),
        "COMP_CWORD": str(at),
    }
    completion.join_words_of_bash(environ)
    assert environ["COMP_WORDS"].replace("\n", "|") == f"zvmsnap|{joined}"
    assert int(environ["COMP_CWORD"]) == joined.count("|") + 1
    assert environ["_ZVMSNAP_COMPLETE_CUT_OFF"] == cut_off


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"_ZVMSNAP_COMPLETE": "complete_zsh", "COMP_WORDS": "zvmsnap\nx\n@", "COMP_CWORD": "2"},
        {"_ZVMSNAP_COMPLETE": "complete_bash"},
        {"_ZVMSNAP_COMPLETE": "complete_bash", "COMP_WORDS": "zvmsnap\nx", "COMP_CWORD": "2"},
    ],
)
def test_other_environments_are_not_changed(environ: dict[str, str]) -> None:
    before = dict(environ)
    completion.join_words_of_bash(environ)
    assert environ == before


@pytest.fixture
def command(tmp_path: Path, points: list[RestorePoint]) -> Path:
    """The command `zvmsnap` in a directory of its own, and a vault with points."""
    keys = ("staging", "vault", "journal", "locks")
    (tmp_path / "config.toml").write_text("".join(f'{k} = "{tmp_path / k}"\n' for k in keys))
    for number, point in enumerate(points):
        incoming = vault.incoming(tmp_path / "vault", point.manifest.domain, f"c{number}")
        vault.publish(incoming, point.manifest)
    script = tmp_path / "bin" / "zvmsnap"
    script.parent.mkdir()
    source = Path(zvmsnap.__file__).parents[1]
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(source)!r})\n"
        "from zvmsnap.__main__ import main\nmain()\n"
    )
    script.chmod(0o755)
    return script


def run(command: Path, *arguments: str, **environ: str) -> str:
    done = subprocess.run(
        arguments,
        env={
            "PATH": f"{command.parent}:/usr/bin:/bin",
            "ZVMSNAP_CONFIG": str(command.parents[1] / "config.toml"),
            **environ,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


BASH = """
eval "$(_ZVMSNAP_COMPLETE=source_bash zvmsnap)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_zvmsnap_completion zvmsnap
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["w"], ["web@", "wiki@"], id="guests"),
        pytest.param(["web", "@", "l"], ["@latest"], id="behind @"),
        pytest.param(
            ["web", "@", "autosnap_2026-11-20_03", ":", "0"],
            ["00:00", "00:00_hourly"],
            id="behind :",
        ),
    ],
)
def test_in_bash(command: Path, words: list[str], expected: list[str]) -> None:
    out = run(command, "bash", "--norc", "-c", BASH, "bash", "zvmsnap", "show", *words)
    assert out.splitlines() == expected


def test_in_fish(command: Path) -> None:
    environ = {
        "_ZVMSNAP_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": "zvmsnap show web@autosnap_2026-11-20_03:0",
    }
    out = run(command, "zvmsnap", **environ)
    assert out.splitlines() == [f"web@{THREE}", f"web@{THREE}_hourly"]


def test_in_zsh(command: Path) -> None:
    environ = {
        "_ZVMSNAP_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "zvmsnap show web@autosnap_2026-11-20_03:00:00_",
    }
    out = run(command, "zvmsnap", **environ)
    assert r"web@autosnap_2026-11-20_03\\:00\\:00_hourly" in out


def test_errors_complete_nothing(command: Path) -> None:
    (command.parents[1] / "config.toml").write_text("no = such key")
    environ = {
        "_ZVMSNAP_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": "zvmsnap show w",
    }
    assert run(command, "zvmsnap", **environ).strip() == ""
