"""Completion of the command line in bash, zsh and fish, in files that these shells load."""

from __future__ import annotations

from typer._completion_shared import get_completion_script

from zvmsnap.terminal.completion import SHELL

_NAME = "zvmsnap"
_FILES = {"bash": _NAME, "zsh": f"_{_NAME}", "fish": f"{_NAME}.fish"}
# zsh loads the file as the function that completes. typer's script only says which function will.
_ZSH_SAYS = "compdef _zvmsnap_completion zvmsnap"
_ZSH_COMPLETES = f"""\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _zvmsnap_completion "$@"
else
  {_ZSH_SAYS}
fi"""


def scripts() -> dict[str, str]:
    """The scripts by file name. Raises ValueError if typer's is not the one that is known."""
    made = {
        file: get_completion_script(prog_name=_NAME, complete_var=SHELL, shell=shell).strip()
        for shell, file in _FILES.items()
    }
    zsh = _FILES["zsh"]
    if made[zsh].count(_ZSH_SAYS) != 1:
        raise ValueError(f"typer's completion script for zsh has no line {_ZSH_SAYS!r}")
    made[zsh] = made[zsh].replace(_ZSH_SAYS, _ZSH_COMPLETES)
    return {file: f"{script}\n" for file, script in made.items()}
