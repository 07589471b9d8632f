import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import zvmsnap
from zvmsnap import cli, vault, zfs
from zvmsnap.point import Manifest, Tie

NAME = "autosnap_2026-11-20_03:00:00_hourly"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on a vault below tmp_path; ZFS has one snapshot of tank/web."""
    conf = tmp_path / "config.toml"
    keys = ("staging", "vault", "journal", "locks")
    conf.write_text("".join(f'{key} = "{tmp_path / key}"\n' for key in keys))
    present = {f"tank/web@{NAME}": zfs.Snapshot("tank/web", NAME, 11, 101)}
    answer = zfs.Answer(present, frozenset(["tank"]))
    monkeypatch.setattr(zfs, "all_snapshots", lambda: answer)
    monkeypatch.setattr(zfs, "snapshots", lambda names: answer)
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(conf))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zvmsnap", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Manifest], Path]:
    """Publishes a point in that vault."""

    def publish(manifest: Manifest) -> Path:
        incoming = vault.incoming(tmp_path / "vault", manifest.domain, manifest.capture)
        return vault.publish(incoming, manifest).directory

    return publish


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"zvmsnap {zvmsnap.__version__}\n", "")


def test_list_of_an_empty_vault(run: Run) -> None:
    assert run("list") == (0, "no points\n", "")
    assert run("list", "web") == (0, "no points of web\n", "")
    assert json.loads(run("list", "--json")[1]) == {"points": [], "interrupted": [], "damaged": []}


def test_list_filters_by_guest_and_reports_damage(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    put(manifest())
    put(manifest(domain="mail", capture="c2"))
    code, out, _ = run("list", "mail")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail"]
    (put(manifest(domain="odd")) / "manifest.json").write_text("{")
    code, out, err = run("list")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail", "web"]
    assert "odd" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", [NAME, NAME.removesuffix("_hourly")])
def test_show_takes_any_name_of_the_moment(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], name: str
) -> None:
    directory = put(manifest())
    code, out, _ = run("show", f"web@{name}", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["directory"] == str(directory)
    assert shown["alive"] == [f"tank/web@{NAME}"]
    assert shown["complete_names"] == [NAME]


@pytest.mark.parametrize("text", ["web", "web@", "@x", "web@x", "nobody@" + NAME])
def test_show_of_what_is_not_there_is_one_line_and_exit_2(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], text: str
) -> None:
    put(manifest())
    code, out, err = run("show", text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err


def test_show_of_a_name_that_two_points_share_asks_which(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    first = put(manifest())
    second = put(manifest(capture="c2"))
    code, _, err = run("show", f"web@{NAME}")
    assert code == 2
    assert f"web@{first.name}, web@{second.name}" in err
    assert run("show", f"web@{second.name}")[0] == 0


def test_prune_removes_only_without_dry_run(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    kept = put(manifest())
    gone = put(manifest(domain="old", snapshots=(Tie("tank/old", NAME, 5, 5),), capture="c2"))
    code, out, _ = run("prune", "--dry-run", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert gone.exists()
    code, out, _ = run("prune", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert not gone.exists() and kept.exists()
    assert run("prune") == (0, "nothing to remove\n", "")


def test_prune_exits_1_when_something_needs_a_person(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    (put(manifest()) / "manifest.json").unlink()
    code, out, _ = run("prune")
    assert (code, out.startswith("damaged: ")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--config", "/nonexistent/config.toml", "list"], 2),
        (["no-such-command"], 2),
        (["hook", "middle"], 2),
        (["hook"], 2),
        (["-v", "hook", "pre"], 2),
        (["hook", "pre"], 2),
        (["hook", "--help"], 0),
        (["--help"], 0),
    ],
)
def test_exit_codes_of_the_real_command(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zvmsnap", *arguments],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
