import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.check_scene import CheckedHost
from tests.fakes.host import FakeHost
from zvmsnap.check import run as checks
from zvmsnap.cli.main import only_reads

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checked(tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> CheckedHost:
    made = CheckedHost(tmp_path, host, monkeypatch)
    look = checks.all_findings
    monkeypatch.setattr(checks, "all_findings", lambda: look(made.root))
    return made


def test_exit_codes_are_those_of_the_worst(checked: CheckedHost, command: Run) -> None:
    code, out, _ = command("check")
    assert (code, out.splitlines()[-1].endswith("0 yellow, 0 red")) == (0, True)
    checked.web.snapshots = ["before"]
    assert command("check")[0] == 1
    checked.edit("script_timeout = 0", "script_timeout = 5")
    code, out, _ = command("check")
    assert code == 2
    # The worst last.
    assert out.splitlines()[-2].startswith("red     [tank/vm/web]: script_timeout = 5")


def test_json(checked: CheckedHost, command: Run) -> None:
    checked.edit("script_timeout = 0", "script_timeout = 5")
    code, out, _ = command("check", "--json")
    said = json.loads(out)
    assert (code, said["schema"], said["colour"], said["fixed"]) == (2, 1, "red", [])
    (found,) = [each for each in said["findings"] if each["colour"] == "red"]
    assert found["check"] == "hooks.script-timeout"
    assert found["subject"] == "[tank/vm/web]"
    assert found["mend"] == "set script_timeout = 0"
    assert found["can_fix"] is False


def test_fix_looks_again(checked: CheckedHost, command: Run) -> None:
    (checked.root / "opt/zvmsnap/hooks/pruning").chmod(0o644)
    assert command("check")[0] == 2
    code, out, _ = command("check", "--fix")
    assert code == 0
    assert out.startswith("fixed: ") and "is executable now" in out
    assert command("check")[0] == 0


def test_only_a_fix_changes_anything() -> None:
    assert only_reads(["check"]) and only_reads(["-v", "check", "--json"])
    assert not only_reads(["check", "--fix"])
