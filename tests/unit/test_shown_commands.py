"""Every command that README and docs/ show is run by a test, or is named in a short table."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LAB = CHECKOUT / "tests" / "lab"
EXAMPLES = CHECKOUT / "examples"
# Blocks of these are no commands. `console`, `bash` and the like would hide some.
LANGUAGES = {"sh", "toml", "yaml", "ini", "nix", "text"}
EXCEPTIONS_AT_MOST = 8


def _readme() -> ModuleType:
    name = "lab_readme"
    spec = importlib.util.spec_from_file_location(name, LAB / "readme.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme = _readme()
BLOCKS = [block for page in readme.pages() for block in readme.blocks(page)]


def followed() -> Iterator[tuple[str, ast.Call, ast.AST]]:
    """Each `readme.commands(TITLE)` of a test: the title, the call, and the statement around it."""
    for path in sorted(LAB.rglob("*.py")):
        for around in ast.walk(ast.parse(path.read_text())):
            for each in ast.iter_child_nodes(around):
                if isinstance(each, ast.Call) and ast.unparse(each.func) == "readme.commands":
                    (title,) = each.args
                    assert isinstance(title, ast.Constant), f"{path}: say the title as it is"
                    yield str(title.value), each, around


def test_each_block_says_what_it_is() -> None:
    wrong = [
        f"{block.page.relative_to(CHECKOUT)}: {block.title}: {block.lines[:1]} is {block.language}"
        for block in BLOCKS
        if block.language not in LANGUAGES
    ]
    assert wrong == []


def test_each_command_is_run() -> None:
    titles = {title for title, _, _ in followed()}
    nobody = [
        f"{block.page.relative_to(CHECKOUT)}: {block.title}: {line}"
        for block in BLOCKS
        for line in block.commands
        if not {block.title, line} & readme.NOT_RUN.keys() and block.title not in titles
    ]
    assert nobody == []


def test_titles_with_commands_are_of_one_page() -> None:
    pages: dict[str, set[Path]] = {}
    for block in BLOCKS:
        if block.commands:
            pages.setdefault(block.title, set()).add(block.page)
    assert {title: found for title, found in pages.items() if len(found) > 1} == {}


def test_exceptions_are_few_and_needed() -> None:
    assert len(readme.NOT_RUN) <= EXCEPTIONS_AT_MOST
    titles = {title for title, _, _ in followed()}
    shown = {line for block in BLOCKS for line in block.commands}
    with_commands = {block.title for block in BLOCKS if block.commands}
    for exception, why in readme.NOT_RUN.items():
        assert exception in shown | (with_commands - titles), exception
        assert why


def test_tests_follow_what_there_is() -> None:
    found = list(followed())
    assert len(found) > 20
    for title, call, around in found:
        number = len(readme.commands(title))
        # `a, b = readme.commands(...)`: a third command would be a block that nobody runs.
        if isinstance(around, ast.Assign) and isinstance(around.targets[0], ast.Tuple):
            assert len(around.targets[0].elts) == number, ast.unparse(around)
        assert not isinstance(around, ast.Subscript), f"{ast.unparse(call)}: run them all"
    with pytest.raises(AssertionError):
        readme.commands("No such recipe")


def test_programs_that_are_shown_are_examples() -> None:
    programs = {"\n".join((*block.lines, "")) for block in BLOCKS if block.lines[0][:2] == "#!"}
    examples = {path.read_text() for path in EXAMPLES.rglob("*") if path.is_file()}
    assert len(programs) >= 3
    assert programs <= examples
