"""The examples, run with stand-ins for what they call; and the page that shows them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.notify import event, programs

CHECKOUT = Path(__file__).resolve().parents[3]
EXAMPLES = CHECKOUT / "examples" / "notify.d"
PAGE = CHECKOUT / "docs" / "how-to" / "watching.md"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program into the path, which keeps its arguments and what it is given."""

    def put(name: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / name
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\ncat > {tmp_path}/given\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return put


@pytest.mark.parametrize(
    ("name", "calls", "last"),
    [
        ("mail", "mail", "root"),
        ("ntfy", "curl", "https://ntfy.sh/TOPIC"),
        ("healthchecks", "curl", "https://hc-ping.com/UUID/fail"),
    ],
)
def test_an_example(
    tmp_path: Path, stand_in: Callable[[str], None], name: str, calls: str, last: str
) -> None:
    stand_in(calls)
    said = event.of(event.Kind.NO_POINT, "libvirt is down", guest="web")
    assert programs.tell([EXAMPLES / name], said) == {}
    assert json.loads((tmp_path / "given").read_text())["text"] == "web: libvirt is down"
    assert (tmp_path / "arguments").read_text().splitlines()[-1] == last


def test_the_page_shows_them_all() -> None:
    page = PAGE.read_text()
    examples = sorted(EXAMPLES.iterdir())
    assert len(examples) == 3
    for example in examples:
        text = example.read_text()
        assert len(text.splitlines()) == 3
        assert f"```sh\n{text}```\n" in page, example.name
