import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.check_scene import CHECKOUT, CheckedHost
from tests.fakes.host import FakeHost
from zvmsnap.check import facts
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


@pytest.fixture
def unset(checked: CheckedHost, monkeypatch: pytest.MonkeyPatch) -> CheckedHost:
    """The host before `init`: without a section for its guest."""
    gather = facts.gather
    monkeypatch.setattr(facts, "gather", lambda: gather(checked.root))
    checked.sanoid_conf.write_text("# mine\n[cheap]\n\thourly = 3\n")
    for hook in (CHECKOUT / "hooks").iterdir():
        checked.program(str(hook).lstrip("/"))
    return checked


def test_init_only_shows_what_it_would_do(unset: CheckedHost, command: Run) -> None:
    code, out, _ = command("init", "--dry-run")
    assert code == 0 and "+[tank/vm/web]" in out
    assert unset.sanoid_conf.read_text() == "# mine\n[cheap]\n\thourly = 3\n"
    code, _, err = command("init")
    assert code == 2 and "--yes" in err  # no terminal to ask on
    assert unset.sanoid_conf.read_text() == "# mine\n[cheap]\n\thourly = 3\n"


def test_init_prints_the_file_as_it_would_be(unset: CheckedHost, command: Run) -> None:
    code, out, _ = command("init", "--print-sanoid")
    assert code == 0
    assert out.startswith("# mine\n[cheap]\n\thourly = 3\n\n[tank/vm/web]\n\tuse_template = zvm")
    assert command("init", "--yes")[0] == 0
    assert unset.sanoid_conf.read_text() == out


def test_init_ends_with_a_check(unset: CheckedHost, command: Run) -> None:
    code, out, _ = command("init", "--yes", "--guest", "web")
    assert code == 0, out
    assert f"wrote {unset.sanoid_conf}; the old one is " in out
    assert out.splitlines()[-1].endswith("0 red")
    unset.web.qemu = None  # its process is not seen: a doubt about its disks
    code, out, _ = command("init", "--yes")
    assert (code, "nothing is missing" in out) == (1, True)
    assert command("init", "--guest", "wbe")[0] == 2
