"""The man pages say what the parser and docs/reference say."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from tools import man_pages
from zvmsnap.cli.main import app_of

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man_pages.pages(DOCS, "2026-11-26")


def commands(command: Any, name: str) -> dict[str, Any]:
    """Every command by the name of its page, groups too."""
    found = {name: command}
    for word, below in getattr(command, "commands", {}).items():
        found |= commands(below, f"{name}-{word}")
    return found


def plain(text: str) -> str:
    for mark, sign in (("\\fB", ""), ("\\fR", ""), ("\\-", "-"), ("\\(aq", "'"), ("\\&", "")):
        text = text.replace(mark, sign)
    return text


def test_every_command_has_a_page_with_all_its_options(pages: dict[str, str]) -> None:
    known = commands(typer.main.get_command(app_of()), "zvmsnap")
    assert {name for name in pages if name.endswith(".1")} == {f"{name}.1" for name in known}
    assert len(known) > 14
    for name, command in known.items():
        text = plain(pages[f"{name}.1"])
        for each in command.params:
            if each.param_type_name == "option" and not each.hidden:
                assert all(
                    f"{opt} " in f"{text} ".replace("\n", " ").replace(",", " ")
                    for opt in each.opts
                ), (name, each.opts)


def test_a_page_of_a_command(pages: dict[str, str]) -> None:
    text = plain(pages["zvmsnap-recover.1"])
    assert text.startswith('.TH "ZVMSNAP-RECOVER" "1" "2026-11-26" "zvmsnap ')
    assert "\nzvmsnap-recover - bring guests that are on overlays back to their own disks\n" in text
    assert '.SH "SYNOPSIS"\nzvmsnap recover [OPTIONS] [' in text
    assert '.SH "EXAMPLE"\n.PP\n.RS 4\n.nf\nzvmsnap recover --dry-run\n.fi' in text
    assert ".TP\n-n, --dry-run\nOnly say what would be done.\n" in text
    assert text.endswith('.SH "SEE ALSO"\nzvmsnap(1), zvmsnap.conf(5), zvmsnap-hooks(7)\n')


def test_exit_status(pages: dict[str, str]) -> None:
    of_all = pages["zvmsnap.1"].partition('.SH "EXIT STATUS"\n')[2]
    assert of_all.startswith("0 done, 1 something failed, 2 usage, configuration or environment.\n")
    of_one = pages["zvmsnap-recover.1"].partition('.SH "EXIT STATUS"\n')[2]
    assert of_one.startswith(".TP\n0\nDone.\n.TP\n1\nSomething failed.")


def test_the_top_page_names_all_commands(pages: dict[str, str]) -> None:
    listed = plain(pages["zvmsnap.1"].partition('.SH "COMMANDS"')[2])
    for name in typer.main.get_command(app_of()).commands:  # type: ignore[attr-defined]
        assert f"zvmsnap-{name}(1)" in listed


def test_the_page_of_the_configuration_has_every_key(pages: dict[str, str]) -> None:
    text = plain(pages["zvmsnap.conf.5"])
    keys = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference/configuration.md").read_text(), re.M)
    assert len(keys) > 30
    for key in keys:
        assert f".TP\n{key}\n" in text, key
    assert '.SH "[LIMITS]"' in text


def test_the_page_of_the_hooks(pages: dict[str, str]) -> None:
    text = plain(pages["zvmsnap-hooks.7"])
    assert "pre_snapshot_script = /usr/lib/zvmsnap/hooks/pre-snapshot" in text


def test_a_command_without_help_is_told() -> None:
    app = typer.Typer()

    @app.command()
    def mute() -> None:
        pass

    command: Any = typer.main.get_command(app)
    with pytest.raises(ValueError, match="zvmsnap mute has no help"):
        list(man_pages.of_command(command, ("zvmsnap", "mute"), ""))


@pytest.mark.skipif(not shutil.which("man"), reason="man is not installed")
def test_groff_has_nothing_to_complain_of(pages: dict[str, str], tmp_path: Path) -> None:
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["man", "--warnings", "--encoding=UTF-8", "--local-file", *map(str, tmp_path.iterdir())],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "ZVMSNAP.CONF(5)" in done.stdout
