import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import zvmsnap
from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.hooks import callers
from zvmsnap.journal.request import HookCall, Role

ROOT = Path(zvmsnap.__file__).parents[1]
SANOID = HookCall(Role.PRE, ("tank/a",), ("x",))
UNNAMED = HookCall(Role.PRE, ("tank/a",), ("x",), unnamed=True)
ZREPL = {
    "ZREPL_HOOKTYPE": "pre_snapshot",
    "ZREPL_FS": "tank/a b",
    "ZREPL_SNAPNAME": "zrepl_20261121_030000_000",
}


class Processes:
    """A table of processes: pid to parent and command line. The hook has the parent 9."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, table: Mapping[int, tuple[int, str]]
    ) -> None:
        self._table = table
        monkeypatch.setattr(os, "getppid", lambda: 9)
        monkeypatch.setattr(callers, "parent_of", lambda pid: table[pid][0] if pid in table else 1)
        monkeypatch.setattr(callers, "_command_line", self._command_line)

    def _command_line(self, pid: int) -> tuple[str, ...]:
        return tuple(self._table[pid][1].split(" ")) if pid in self._table else ()


@pytest.mark.parametrize(
    ("table", "pid"),
    [
        pytest.param({9: (1, "/usr/bin/perl /usr/sbin/sanoid --cron")}, 9, id="sanoid itself"),
        pytest.param(
            {9: (8, "sh -c hook"), 8: (7, "perl -w /usr/sbin/sanoid"), 7: (1, "cron")},
            8,
            id="through a shell",
        ),
        pytest.param(
            {9: (8, "sh"), 8: (7, "bash w.sh"), 7: (6, "env sanoid"), 6: (1, "sh")},
            7,
            id="through two scripts",
        ),
        pytest.param(
            {9: (8, "perl sanoid"), 8: (7, "sh"), 7: (1, "perl sanoid")}, 9, id="the nearest"
        ),
        pytest.param({9: (8, "bash"), 8: (1, "sshd")}, None, id="by hand"),
        pytest.param({9: (8, "vi a b /etc/sanoid"), 8: (1, "sh")}, None, id="a file of that name"),
        pytest.param({9: (0, "kthreadd")}, None, id="no parent"),
        pytest.param({}, None, id="dead already"),
        pytest.param({9: (8, "sh")}, None, id="its parent is dead"),
    ],
)
def test_sanoid_is_found(
    monkeypatch: pytest.MonkeyPatch, table: Mapping[int, tuple[int, str]], pid: int | None
) -> None:
    Processes(monkeypatch, table)
    caller = callers.find_caller(SANOID, {})
    assert (caller.pid, caller.post_within_s) == ((pid, math.inf) if pid else (9, 0))
    assert not caller.post_only_after_success


@pytest.mark.parametrize(
    ("call", "line", "environment", "within_s"),
    [
        pytest.param(UNNAMED, "python3 /usr/bin/zfs-autobackup -v x", {}, math.inf, id="script"),
        pytest.param(
            UNNAMED, "python3 -m zfs_autobackup.ZfsAutobackup x", {}, math.inf, id="module"
        ),
        pytest.param(UNNAMED, "bash", {}, 0, id="by hand"),
        pytest.param(UNNAMED, "perl sanoid", {}, 0, id="sanoid has no arguments"),
        pytest.param(SANOID, "/usr/bin/zrepl daemon", ZREPL, 120, id="zrepl"),
        pytest.param(SANOID, "bash", ZREPL, 0, id="its environment by hand"),
    ],
)
def test_others_are_found(
    monkeypatch: pytest.MonkeyPatch,
    call: HookCall,
    line: str,
    environment: Mapping[str, str],
    within_s: float,
) -> None:
    Processes(monkeypatch, {9: (8, "sh -c hook"), 8: (1, line)})
    caller = callers.find_caller(call, environment)
    assert (caller.pid, caller.post_within_s) == (8 if within_s else 9, within_s)
    assert caller.post_only_after_success is bool(environment)


def test_sanoid_is_found_among_real_processes(tmp_path: Path) -> None:
    program = tmp_path / "sanoid"
    program.write_text(
        "import os, subprocess, sys\n"
        "print(os.getpid(), flush=True)\n"
        "subprocess.run(['sh', '-c', sys.argv[1] + '; true'])\n"
    )
    child = (
        f"{sys.executable} -c 'from zvmsnap.hooks import callers, sanoid; "
        'c = sanoid.HookCall(sanoid.Role.PRE, ("a",), ("b",)); '
        "print(callers.find_caller(c, {}).pid)'"
    )
    done = subprocess.run(
        [sys.executable, program, child], check=True, capture_output=True, text=True
    )
    sanoid, caller = done.stdout.split()
    assert sanoid == caller
    assert callers.find_caller(SANOID, {}).pid == os.getppid()
    assert callers._command_line(2**22 + 1) == ()


def test_sanoid_is_found_under_another_name_and_no_script_between_is_taken_for_it(
    tmp_path: Path,
) -> None:
    marks = "# Config::IniFiles zfs_recursion SANOID_TARGET\n"
    child = (
        "from zvmsnap.hooks import callers, sanoid; "
        "c = sanoid.HookCall(sanoid.Role.PRE, ('a',), ('b',)); "
        "found = callers.find_caller(c, {}); print(found.pid, *found.sanoid)"
    )
    # A hook of the administrator's own, in Perl, which says all that sanoid's text says.
    (tmp_path / "hook.pl").write_text(f"{marks}system($ARGV[0], '-c', $ARGV[1]);\n")
    (tmp_path / ".sanoid-wrapped").write_text(
        f"{marks}$| = 1; print qq($$\\n); $ENV{{SANOID_TARGET}} = 'a';\n"
        "system('perl', 'hook.pl', @ARGV);\n"
    )
    done = subprocess.run(
        ["perl", ".sanoid-wrapped", sys.executable, child],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    sanoid, caller = done.stdout.splitlines()
    assert caller.split() == [sanoid, "perl", f"/proc/{sanoid}/cwd/.sanoid-wrapped"]


def test_the_environment_of_zrepl() -> None:
    name = ZREPL["ZREPL_SNAPNAME"]
    assert callers.hook_call([], ZREPL) == HookCall(Role.PRE, ("tank/a b",), (name,))
    post = callers.hook_call([], ZREPL | {"ZREPL_HOOKTYPE": "post_snapshot"})
    assert post == HookCall(Role.POST, ("tank/a b",), (name,))
    assert callers.hook_call([], ZREPL | {"ZREPL_DRYRUN": "true"}) is None
    assert callers.hook_call([], ZREPL | {"ZREPL_DRYRUN": ""}) is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ZREPL_HOOKTYPE": "pre_reboot"}, "ZREPL_HOOKTYPE 'pre_reboot' is none of pre_snapshot"),
        ({"ZREPL_FS": ""}, "ZREPL_FS ''"),
        ({"ZREPL_FS": "tank/../x"}, "ZREPL_FS 'tank/../x'"),
        ({"ZREPL_SNAPNAME": "a@b"}, "ZREPL_SNAPNAME 'a@b'"),
    ],
)
def test_no_environment_of_zrepl(changes: dict[str, str], says: str) -> None:
    with pytest.raises(HookEnvironmentInvalid) as error:
        callers.hook_call([], ZREPL | changes)
    assert says in str(error.value)


def test_arguments_of_zfs_autobackup() -> None:
    call = callers.hook_call(["post", "tank/a", "other/b c", "tank/a"], {})
    assert call is not None
    assert (call.role, call.datasets, call.unnamed) == (Role.POST, ("tank/a", "other/b c"), True)
    assert len(call.names) == 1 and call.types == ("manual",)


@pytest.mark.parametrize("words", [[], ["x"], ["x", "tank/a"], ["pre", "-r"], ["pre", ""]])
def test_wrong_arguments(words: list[str]) -> None:
    with pytest.raises(HookEnvironmentInvalid):
        callers.hook_call(words, {})
