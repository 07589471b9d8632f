from contextlib import nullcontext

import pytest

from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.common.steps import Step, StepFailed, run, take_back


class Play:
    """Steps a, b (without undo) and c, of which the named ones fail."""

    def __init__(self, *failing: str, failure: type[BaseException] = ZvmsnapError) -> None:
        self.done: list[str] = []
        self.recorded: list[str] = []
        self._failing = failing
        self._failure = failure
        self.steps = [
            Step("a", lambda: self._act("do a"), lambda: self._act("undo a")),
            Step("b", lambda: self._act("do b")),
            Step("c", lambda: self._act("do c"), lambda: self._act("undo c")),
        ]

    def _act(self, what: str) -> None:
        self.done.append(what)
        if what in self._failing:
            raise self._failure(f"no {what}")

    def record(self, name: str) -> None:
        self.recorded.append(name)
        if f"record {name}" in self._failing:
            raise OSError("disk full")


def test_all_in_order() -> None:
    play = Play()
    run(play.steps, play.record)
    assert play.done == ["do a", "do b", "do c"]
    assert play.recorded == ["a", "b", "c"]


def test_nothing_to_do() -> None:
    play = Play()
    run([], play.record)
    assert play.recorded == []


FAULTS = [
    pytest.param(("do a",), "a", "no do a", ["do a", "undo a"], [], id="first"),
    pytest.param(("do b",), "b", "no do b", ["do a", "do b", "undo a"], [], id="without undo"),
    pytest.param(
        ("do c",), "c", "no do c", ["do a", "do b", "do c", "undo c", "undo a"], [], id="last"
    ),
    pytest.param(("record a",), "a", "disk full", ["undo a"], [], id="not written down"),
    pytest.param(
        ("record c",),
        "c",
        "disk full",
        ["do a", "do b", "undo c", "undo a"],
        [],
        id="last not written down",
    ),
    pytest.param(
        ("do c", "record undo c", "record undo a"),
        "c",
        "no do c",
        ["do a", "do b", "do c", "undo c", "undo a"],
        [],
        id="undone, though the undo cannot be written down",
    ),
    pytest.param(
        ("do c", "undo c"),
        "c",
        "no do c",
        ["do a", "do b", "do c", "undo c", "undo a"],
        ["c: no undo c"],
        id="one undo fails, the others are tried",
    ),
    pytest.param(
        ("do c", "undo c", "undo a"),
        "c",
        "no do c",
        ["do a", "do b", "do c", "undo c", "undo a"],
        ["c: no undo c", "a: no undo a"],
        id="all undos fail",
    ),
]


@pytest.mark.parametrize(("failing", "step", "cause", "done", "not_undone"), FAULTS)
@pytest.mark.parametrize("failure", [ZvmsnapError, OSError])
def test_fault(
    failing: tuple[str, ...],
    step: str,
    cause: str,
    done: list[str],
    not_undone: list[str],
    failure: type[BaseException],
) -> None:
    play = Play(*failing, failure=failure)
    with pytest.raises(StepFailed) as caught:
        run(play.steps, play.record)
    assert play.done == done
    assert caught.value.step == step
    assert str(caught.value.cause) == cause
    assert caught.value.__cause__ is caught.value.cause
    assert caught.value.not_undone == tuple(not_undone)
    message = str(caught.value)
    assert message.startswith(f"{step}: {cause}")
    assert all(line in message for line in not_undone)
    assert ("could not be undone" in message) == bool(not_undone)


def test_what_nobody_foresaw_says_where_it_was() -> None:
    play = Play("do c", "undo c", failure=RuntimeError)
    with pytest.raises(
        StepFailed, match=r"c: RuntimeError at test_steps.py:\d+: no do c"
    ) as caught:
        run(play.steps, play.record)
    assert play.done == ["do a", "do b", "do c", "undo c", "undo a"]
    assert caught.value.not_undone[0].endswith(": no undo c")


def test_each_undo_is_written_down_before_it_begins() -> None:
    play = Play("do c")
    order: list[str] = []

    def record(name: str) -> None:
        order.append(f"{name} after {play.done[-1] if play.done else 'nothing'}")

    with pytest.raises(StepFailed):
        run(play.steps, record)
    assert order == [
        "a after nothing",
        "b after do a",
        "c after do b",
        "undo c after do c",
        "undo a after undo c",
    ]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_interrupted(failure: type[BaseException]) -> None:
    play = Play("do b", failure=failure)
    with pytest.raises(StepFailed) as caught:
        run(play.steps, play.record)
    assert isinstance(caught.value.cause, failure)
    assert play.done == ["do a", "do b", "undo a"]


@pytest.mark.parametrize(
    ("begin_with", "failing", "done", "recorded"),
    [
        pytest.param("a", (), ["do a", "do b", "do c"], ["a", "b", "c"], id="from the first"),
        pytest.param("b", (), ["do b", "do c"], ["b", "c"], id="from the middle"),
        pytest.param("c", (), ["do c"], ["c"], id="from the last"),
        pytest.param(
            "c",
            ("do c",),
            ["do c", "undo c", "undo a"],
            ["c", "undo c", "undo a"],
            id="what was done before is undone too",
        ),
    ],
)
def test_gone_on_with(
    begin_with: str, failing: tuple[str, ...], done: list[str], recorded: list[str]
) -> None:
    play = Play(*failing)
    with pytest.raises(StepFailed) if failing else nullcontext():
        run(play.steps, play.record, begin_with=begin_with)
    assert play.done == done
    assert play.recorded == recorded


TAKEN_BACK = [
    pytest.param("a", (), ["undo a"], ["undo a"], [], id="from the first"),
    pytest.param("b", (), ["undo a"], ["undo a"], [], id="from one without undo"),
    pytest.param("c", (), ["undo c", "undo a"], ["undo c", "undo a"], [], id="from the last"),
    pytest.param(
        "c",
        ("undo c",),
        ["undo c", "undo a"],
        ["undo c"],
        ["c: no undo c"],
        id="what fails stays written down, for the next try",
    ),
    pytest.param(
        "c", ("undo a",), ["undo c", "undo a"], ["undo c", "undo a"], ["a: no undo a"], id="first"
    ),
    pytest.param(
        "c",
        ("record undo c",),
        ["undo c", "undo a"],
        ["undo c", "undo a"],
        [],
        id="though it cannot be written down",
    ),
]


@pytest.mark.parametrize(("last", "failing", "done", "recorded", "left"), TAKEN_BACK)
def test_taken_back(
    last: str, failing: tuple[str, ...], done: list[str], recorded: list[str], left: list[str]
) -> None:
    play = Play(*failing)
    assert take_back(play.steps, last, play.record) == left
    assert play.done == done
    assert play.recorded == recorded


@pytest.mark.parametrize("name", ["d", "undo a", " "])
def test_a_step_that_is_none(name: str) -> None:
    play = Play()
    with pytest.raises(ZvmsnapError, match="is no step of this"):
        run(play.steps, play.record, begin_with=name)
    with pytest.raises(ZvmsnapError, match="is no step of this"):
        take_back(play.steps, name, play.record)
    assert play.done == play.recorded == []
