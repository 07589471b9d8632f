"""What the documents name exists: links, keys, commands, options and modules."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from zvmsnap.cli.main import app_of

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIGURATION = CHECKOUT / "docs" / "reference" / "configuration.md"
EXAMPLES = [CHECKOUT / "config.toml.example", CHECKOUT / "sanoid.conf.example"]
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    CHECKOUT / "CHANGELOG.md",
    *sorted((CHECKOUT / "docs").rglob("*.md")),
]

FENCED = re.compile(r"^(?P<fence>`{3,})[^`\n]*\n(?P<code>.*?)^(?P=fence)$", re.M | re.S)
INDENTED = re.compile(r"^ {4}(.*)$", re.M)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)
ROW = re.compile(r"^\| `(?P<key>\w+)` \| (?P<default>`[^`]*`|none, required) \|", re.M)

ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))


def prose(page: Path) -> str:
    """The text without its blocks of code."""
    return FENCED.sub("", page.read_text())


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of its headings, as GitHub makes them."""
    taken: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        text = LINK.sub(lambda link: link[0][1:].partition("]")[0], heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in taken:
            number += 1
        taken.add(numbered)
    return frozenset(taken)


@ids
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(SPAN.sub("", prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(CHECKOUT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose(PAGES[0]))}
    pages = {str(page.relative_to(CHECKOUT)) for page in PAGES[1:]}
    assert pages <= linked


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r"(\S+\.md)$", (CHECKOUT / "mkdocs.yml").read_text(), re.M)
    pages = {str(page.relative_to(CHECKOUT)) for page in PAGES}
    assert pages <= set(listed) and len(listed) == len(set(listed))


def example_keys() -> dict[tuple[str, str], Any]:
    """Every key of config.toml.example, by table, with its value; that of [[destination]] too."""
    text = EXAMPLES[0].read_text()
    # What is commented out by one # alone is TOML.
    text, table = text[: text.index("#[[")], text[text.index("#[[") :]
    tables = tomllib.loads(text) | tomllib.loads(re.sub(r"^#(?![ #\n])", "", table, flags=re.M))
    keys: dict[tuple[str, str], Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            keys |= {(name, key): each for key, each in value.items()}
        elif name == "destination":
            keys |= {(name, key): each for key, each in value[0].items()}
        else:
            keys["", name] = value
    return keys


def documented_keys() -> dict[tuple[str, str], str]:
    """Every key in the tables of the page, by the table of its section, with its default."""
    keys: dict[tuple[str, str], str] = {}
    for section in CONFIGURATION.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        table = "" if title == "Top level" else title.strip("[]")
        keys |= {(table, row["key"]): row["default"].strip("`") for row in ROW.finditer(section)}
    return keys


def test_every_key_is_described() -> None:
    assert documented_keys().keys() == example_keys().keys()


def test_every_default_is_the_one_of_the_example() -> None:
    given = {("destination", "target"), ("destination", "guests")}
    documented = {key: default for key, default in documented_keys().items() if key not in given}
    defaults = {key: tomllib.loads(f"x = {text}")["x"] for key, text in documented.items()}
    assert defaults == {key: value for key, value in example_keys().items() if key not in given}


def code(page: Path) -> Iterator[str]:
    """Its lines of code, and its spans of code."""
    text = page.read_text()
    if page.suffix != ".md":
        yield from (line.lstrip("#\t ") for line in text.splitlines() if "zvmsnap hook" in line)
        yield from (span for _, span in SPAN.findall(text))
        return
    for block in FENCED.finditer(text):
        yield from block["code"].splitlines()
    rest = FENCED.sub("", text)
    yield from INDENTED.findall(rest)
    yield from (span.replace("\n", " ") for _, span in SPAN.findall(rest))


def calls(line: str) -> Iterator[list[str]]:
    """The arguments of each `zvmsnap` in a command line."""
    try:
        words = shlex.split(line)
    except ValueError:
        return
    for position, word in enumerate(words):
        if word.rpartition("/")[2] == "zvmsnap":
            behind = words[position + 1 :]
            ends = [n for n, each in enumerate(behind) if each in ("|", "&&", ";", "||")]
            yield behind[: min(ends, default=len(behind))]


def options(parameters: Any) -> dict[str, bool]:
    """Every spelling of every option, and whether a value follows."""
    return {
        spelling: not (each.is_flag or each.count)
        for each in parameters
        if each.param_type_name == "option"
        for spelling in each.opts
    } | {"-h": False, "--help": False}


def what_is_wrong(words: list[str]) -> str | None:
    group: Any = typer.main.get_command(app_of())
    allowed, command = options(group.params), None
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            if name not in allowed:
                return f"no option {name}"
            if allowed[name] and not equals:
                next(rest, None)
        elif command is None:
            command = word
            if command not in group.commands:
                return f"no command {command}"
            allowed = options(group.commands[command].params)
    return None


@pytest.mark.parametrize(
    "page", [*PAGES, *EXAMPLES], ids=lambda page: str(page.relative_to(CHECKOUT))
)
def test_every_command_and_option_exists(page: Path) -> None:
    lines = [(line, words) for line in code(page) for words in calls(line)]
    wrong = {line: why for line, words in lines if (why := what_is_wrong(words))}
    assert not wrong


def test_options_in_a_table_are_of_the_command_of_its_page() -> None:
    pages = {
        "restore.md": ["restore"],
        "take.md": ["take"],
        "clone-and-verify.md": ["clone"],
        "offsite.md": ["send"],
    }
    for name, commands in pages.items():
        text = (CHECKOUT / "docs" / "how-to" / name).read_text()
        rows = re.findall(r"^\| `(--[^`]+)` \|", text, re.M)
        assert rows, name
        for row in rows:
            assert [what_is_wrong([each, *shlex.split(row)]) for each in commands] == [None], row


def test_commands_that_do_not_exist() -> None:
    assert what_is_wrong(["lisst"]) == "no command lisst"
    assert what_is_wrong(["--config", "lisst", "list", "--yes"]) == "no option --yes"
    assert what_is_wrong(["take", "web", "--keep", "7", "--mode=crash", "-n"]) is None
    assert list(calls("a | /usr/bin/zvmsnap list --json && b")) == [["list", "--json"]]


def test_every_named_module_exists() -> None:
    text = (CHECKOUT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)/` \|.*?\|(.*)\|$", text, re.M))
    tree = CHECKOUT / "zvmsnap"
    assert rows.keys() == {path.parent.name for path in tree.glob("*/__init__.py")}
    named = [tree / package / each for package in rows for each in modules(rows[package])]
    named += [
        CHECKOUT / path
        for path in re.findall(
            r"`(zvmsnap/[\w/]+\.py)`", (CHECKOUT / "CONTRIBUTING.md").read_text()
        )
        if "NAME" not in path
    ]
    assert len(named) > 40
    assert [path for path in named if not path.is_file()] == []


def modules(cell: str) -> list[str]:
    names: list[str] = re.findall(r"`(\w+\.py)`", cell)
    return names


def test_the_readme_has_the_test_command() -> None:
    assert "\nmake test\n```\n" in PAGES[0].read_text()
