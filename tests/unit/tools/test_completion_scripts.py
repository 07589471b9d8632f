"""The completion of the package, in real shells."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zvmsnap
from tools import completion_scripts

ROOT = Path(zvmsnap.__file__).parents[1]


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A directory with the command `zvmsnap`, of this checkout, and the scripts."""
    program = tmp_path / "zvmsnap"
    text = (ROOT / "debian" / "command").read_text().replace("/usr/bin/python3", sys.executable)
    where = "os.path.dirname(os.path.dirname(os.path.realpath(__file__)))"
    assert where in text
    program.write_text(text.replace(where, repr(str(ROOT))))
    program.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    for name, text in completion_scripts.scripts().items():
        (tmp_path / "scripts" / name).write_text(text)
    return tmp_path


def asked(command: Path, shell: str, script: str) -> str:
    done = subprocess.run(
        [*shell.split(), "-c", script],
        env={
            "PATH": f"{command}:/usr/bin:/bin",
            "HOME": str(command),
            "HERE": f"{command}/scripts",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_bash(command: Path) -> None:
    script = (
        ". $HERE/zvmsnap; complete -p zvmsnap; COMP_WORDS=(zvmsnap re); COMP_CWORD=1; "
        '_zvmsnap_completion zvmsnap; echo "${COMPREPLY[@]}"'
    )
    registered, completions = asked(command, "bash", script).splitlines()
    assert registered == "complete -o default -F _zvmsnap_completion zvmsnap"
    assert {"recover", "restore"} <= set(completions.split())


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes_the_first_time(command: Path) -> None:
    # As compinit has it: the file is loaded as the function that completes.
    script = (
        "fpath=($HERE); autoload -Uz _zvmsnap; _arguments() { print -rl -- $@ }; "
        "compdef() { print registered }; words=(zvmsnap re); CURRENT=2; _zvmsnap"
    )
    said = asked(command, "zsh -f", script)
    assert "recover" in said
    assert "registered" not in said


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(command: Path) -> None:
    said = asked(command, "fish", "source $HERE/zvmsnap.fish; complete -C 'zvmsnap re'")
    assert {"recover", "restore"} <= set(said.split())
