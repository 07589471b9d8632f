"""The man pages: one for each command, from its parser; zvmsnap.conf(5) and zvmsnap-hooks(7).

The text of a command's page is that of its --help. The other two are pages of docs/reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import zvmsnap
from tools import roff
from zvmsnap.cli.main import app_of

_NAME = "zvmsnap"
_EXACT = "\b"  # click's mark of a paragraph whose lines stay as they are
# Of docs/reference: the page, its section, and what whatis(1) says.
_TOPICS = {
    "configuration.md": ("zvmsnap.conf", 5, "configuration of zvmsnap"),
    "hooks.md": ("zvmsnap-hooks", 7, "the hooks that make points, and who calls them"),
}
_EXIT_STATUS = (
    ("0", "Done."),
    ("1", "Something failed. One line says what, where, and what to do."),
    ("2", "Usage, configuration, or an environment that cannot be used. Nothing was touched."),
)


def pages(docs: Path, date: str) -> dict[str, str]:
    """All man pages by file name; `docs` is docs/, `date` is printed in them."""
    app: Any = typer.main.get_command(app_of())
    made = dict(of_command(app, (_NAME,), date))
    for file, (name, section, about) in _TOPICS.items():
        text = (docs / "reference" / file).read_text()
        lines = [
            *_head(name, section, about, date),
            roff.heading("Description"),
            *roff.of_markdown(text),
            *_see_also(name, [page.removesuffix(".1") for page in made]),
        ]
        made[f"{name}.{section}"] = _joined(lines)
    return made


def of_command(command: Any, words: tuple[str, ...], date: str) -> Iterator[tuple[str, str]]:
    """The page of a command, and those of the commands below it."""
    name = "-".join(words)
    context = command.context_class(command, info_name=" ".join(words), max_content_width=100)
    below: dict[str, Any] = getattr(command, "commands", {})
    paragraphs = _paragraphs(command.help or "")
    summary = " ".join(paragraphs[0].split()).rstrip(".") if paragraphs else ""
    if not summary:
        raise ValueError(f"zvmsnap {' '.join(words[1:])} has no help")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        *_head(name, 1, summary[0].lower() + summary[1:], date),
        roff.heading("Synopsis"),
        f"{roff.bold(' '.join(words))} {roff.escaped(usage)}".rstrip(),
        roff.heading("Description"),
        *_description(paragraphs),
        *_parameters(command, context),
    ]
    if below:
        lines.append(roff.heading("Commands"))
        for word in below:
            tag = f"\\fB{roff.escaped('-'.join((*words, word)))}\\fR(1)"
            lines += roff.item(tag, roff.escaped(below[word].get_short_help_str(100)))
    lines += [roff.heading("Exit status"), *_exit_status(paragraphs)]
    others = [f"{name}-{word}" for word in below] if below else ["-".join(words[:-1])]
    lines += _see_also(name, others)
    yield f"{name}.1", _joined(lines)
    for word in below:
        yield from of_command(below[word], (*words, word), date)


def _head(name: str, section: int, about: str, date: str) -> list[str]:
    return [
        roff.title(name, section, date, zvmsnap.__version__),
        roff.heading("Name"),
        f"{roff.escaped(name)} \\- {roff.escaped(about)}",
    ]


def _paragraphs(help_text: str) -> list[str]:
    return [each.strip("\n") for each in re.split(r"\n\s*\n", help_text.strip()) if each.strip()]


def _description(paragraphs: list[str]) -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        if _is_exit_status(paragraph):
            continue
        if not paragraph.startswith(_EXACT):
            lines += [".PP", *(roff.escaped(line.strip()) for line in paragraph.splitlines())]
            continue
        first, *rest = paragraph.removeprefix(_EXACT).strip("\n").splitlines()
        if rest and first.endswith(":"):
            lines += [roff.heading(first.rstrip(":")), *roff.preformatted(map(str.strip, rest))]
        else:
            lines += roff.preformatted((first, *rest))
    return lines


def _exit_status(paragraphs: list[str]) -> list[str]:
    """What the help of the command says of it, else what holds for all."""
    for paragraph in filter(_is_exit_status, paragraphs):
        own = [line.strip() for line in paragraph.partition(":")[2].strip("\n").splitlines()]
        return roff.preformatted(own) if own[1:] else [roff.escaped(own[0])]
    lines: list[str] = []
    for code, meaning in _EXIT_STATUS:
        lines += roff.item(code, roff.escaped(meaning))
    return lines


def _is_exit_status(paragraph: str) -> bool:
    return paragraph.removeprefix(_EXACT).strip("\n").startswith("Exit codes:")


def _parameters(command: Any, context: Any) -> list[str]:
    lines: list[str] = []
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        records = [
            record
            for each in command.get_params(context)
            if each.param_type_name == kind and (record := each.get_help_record(context))
        ]
        if records:
            lines.append(roff.heading(title))
        for tag, text in records:
            lines += roff.item(roff.bold(tag), roff.escaped(" ".join(text.split())))
    return lines


def _see_also(name: str, others: list[str]) -> list[str]:
    topics = [(topic, section) for topic, section, _ in _TOPICS.values()]
    named = [(other, 1) for other in others] + topics
    shown = ", ".join(
        f"\\fB{roff.escaped(other)}\\fR({section})" for other, section in named if other != name
    )
    return [roff.heading("See also"), shown]


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
