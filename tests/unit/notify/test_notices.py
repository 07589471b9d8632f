import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zvmsnap.common.errors import NoSpace
from zvmsnap.common.lockfile import lock
from zvmsnap.common.steps import StepFailed
from zvmsnap.config.settings import Config
from zvmsnap.notify import event, failures, notices, programs
from zvmsnap.notify.event import Kind

Put = Callable[[str, str], Path]


@pytest.fixture
def told(config: Config, tmp_path: Path) -> Config:
    """A configuration with a directory of programs."""
    (tmp_path / "notify.d").mkdir()
    return msgspec.structs.replace(config, notify=str(tmp_path / "notify.d"))


@pytest.fixture
def put(told: Config) -> Put:
    """Puts a shell script into it."""

    def write(name: str, script: str) -> Path:
        path = Path(told.notify) / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def note(config: Config, cause: str | Exception = "no room", **fields: str) -> None:
    notices.note(config, event.of(Kind.LEVEL, cause, guest="web", dataset="tank/web", **fields))


def heard(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_program_gets_each_failure(told: Config, put: Put, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(name, f"tr -d '\\n' >> {tmp_path}/{name}; echo >> {tmp_path}/{name}")
    note(told, NoSpace("staging is full"), level="crash", wanted="memory,crash", uuid="u")
    note(told, "second")
    notices.deliver(told)
    first, second = heard(tmp_path / "a")
    assert heard(tmp_path / "b") == [first, second]
    assert {key: first[key] for key in first.keys() - {"time", "host"}} == {
        "schema": 1,
        "kind": "level",
        "guest": "web",
        "uuid": "u",
        "dataset": "tank/web",
        "level": "crash",
        "wanted": "memory,crash",
        "error": "NoSpace",
        "cause": "staging is full",
        "what_to_do": "mend the cause, or say with zvmsnap:mode that less is enough",
        "text": "web (tank/web): staging is full",
    }
    assert second["cause"] == "second"
    assert failures.read(told.journal_dir) == {"NoSpace": 1, "level": 1}
    notices.deliver(told)
    assert len(heard(tmp_path / "a")) == 2


def test_counters_only_grow(told: Config) -> None:
    for _ in range(3):
        note(told, NoSpace("x"))
        notices.deliver(told)
    assert failures.read(told.journal_dir) == {"NoSpace": 3}
    (told.journal_dir / "failures.count").write_text("{")
    assert failures.read(told.journal_dir) == {}


def test_a_step_is_counted_by_its_cause() -> None:
    error = StepFailed("dump", NoSpace("x"), [])
    assert event.of(Kind.LEVEL, error).error == "NoSpace"


def test_a_program_that_fails_or_hangs_is_logged_and_keeps_no_other(
    told: Config,
    put: Put,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(programs, "LIMIT_S", 1.0)
    failing = put("a", "echo no such host >&2; exit 3")
    hanging = put("b", "sleep 600")
    (Path(told.notify) / "c").write_text("#!/no/such/interpreter\n")
    (Path(told.notify) / "c").chmod(0o755)
    put("d", f"touch {tmp_path}/told")
    note(told)
    notices.deliver(told)
    assert (tmp_path / "told").exists()
    assert {f"{failing}: failed (3): no such host", f"{hanging}: takes longer than 1 s"} <= set(
        caplog.messages
    )
    assert {record.levelname.strip(": ").lower() for record in caplog.records} == {"warning"}


def test_what_takes_too_long_is_told_to_nobody(
    told: Config,
    put: Put,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notices, "_DELIVERY_S", 0.0)
    put("a", f"echo x >> {tmp_path}/told")
    for _ in range(5):
        note(told)
    notices.deliver(told)
    assert not (tmp_path / "told").exists()
    assert "5 more failures are told to nobody" in caplog.text
    assert failures.read(told.journal_dir) == {"level": 5}


@pytest.mark.parametrize(
    ("name", "mode"), [(".a", 0o755), ("a~", 0o755), ("a", 0o644), ("a", 0o777), ("a.bak", 0o755)]
)
def test_what_is_not_run(told: Config, put: Put, tmp_path: Path, name: str, mode: int) -> None:
    put(name, f"touch {tmp_path}/told").chmod(mode)
    note(told)
    notices.deliver(told)
    assert not (tmp_path / "told").exists()


def test_without_a_directory(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    note(config)
    notices.deliver(msgspec.structs.replace(config, notify="/nonexistent"))
    assert failures.read(config.journal_dir) == {"level": 1}
    assert caplog.messages == []


def test_programs_are_told_though_the_journal_is_full(
    told: Config, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failures, "add", full)
    put("a", f"touch {tmp_path}/told")
    note(told)
    notices.deliver(told)
    assert (tmp_path / "told").exists()


def test_where_nothing_can_be_written(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    Path(config.locks).write_text("foreign")
    note(config)
    notices.deliver(config)
    assert "nobody will be told of a failure" in caplog.text


def test_what_is_damaged_is_not_told_again_and_again(
    told: Config, caplog: pytest.LogCaptureFixture
) -> None:
    note(told)
    (file,) = (told.locks_dir / "notices").iterdir()
    file.write_text("{")
    notices.deliver(told)
    assert "nobody is told of it" in caplog.text
    assert list((told.locks_dir / "notices").iterdir()) == []


def test_two_deliver_at_once(told: Config, put: Put, tmp_path: Path) -> None:
    put("a", f"echo x >> {tmp_path}/told")
    note(told)
    held, over = threading.Event(), threading.Event()

    def other() -> None:
        with lock(told.locks_dir, "tell-failures", "x", 5):
            held.set()
            over.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(30)
    notices.deliver(told)
    assert not (tmp_path / "told").exists()
    over.set()
    thread.join()
    notices.deliver(told)
    assert (tmp_path / "told").read_text() == "x\n"
