"""The examples in help are command lines that the parser takes, with what they are for behind."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from zvmsnap.cli.main import app_of

GROUP: Any = typer.main.get_command(app_of())
HELP = {"zvmsnap": GROUP.help, **{name: each.help for name, each in GROUP.commands.items()}}

# An example begins a line; a remark is at least two blanks behind it.
EXAMPLE = re.compile(r"^ +zvmsnap (\S.*?)(?:  +.*)?$", re.M)


def examples() -> Iterator[str]:
    for text in HELP.values():
        yield from EXAMPLE.findall(text)


@pytest.mark.parametrize("example", dict.fromkeys(examples()))
def test_examples_are_parsed(example: str) -> None:
    name, *words = shlex.split(example)
    with GROUP.commands[name].make_context(name, words) as context:
        assert context.args == []


def test_every_command_but_hook_has_an_example() -> None:
    lacking = {name for name, text in HELP.items() if not EXAMPLE.search(text)}
    assert lacking == {"hook"}


def test_wrong_examples_are_not_parsed() -> None:
    with pytest.raises(typer.BadParameter):
        GROUP.commands["take"].make_context("take", ["--keep", "x", "web"])


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_summaries_are_one_sentence(name: str) -> None:
    summary = HELP[name].partition("\n\n")[0]
    assert summary.endswith(".") and summary.count(".") == 1
