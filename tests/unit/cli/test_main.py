import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zvmsnap
from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.cli import main
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.process import Process
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.virt import qemu_conf
from zvmsnap.zfs import mounts, types, zfs

NAME = "autosnap_2026-11-20_03:00:00_hourly"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on a vault below tmp_path; ZFS has one snapshot of tank/web."""
    conf = tmp_path / "config.toml"
    keys = ("staging", "vault", "journal", "locks")
    conf.write_text("".join(f'{key} = "{tmp_path / key}"\n' for key in keys))
    present = {f"tank/web@{NAME}": types.Snapshot("tank/web", NAME, 11, 101)}
    answer = types.SnapshotListing(present, frozenset(["tank"]))
    monkeypatch.setattr(zfs, "all_snapshots", lambda: answer)
    monkeypatch.setattr(zfs, "snapshots", lambda names: answer)
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(conf))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zvmsnap", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Manifest], Path]:
    """Publishes a point in that vault."""

    def publish(manifest: Manifest) -> Path:
        incoming = vault.incoming(tmp_path / "vault", manifest.domain, manifest.capture)
        return vault.publish(incoming, manifest).directory

    return publish


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"zvmsnap {zvmsnap.__version__}\n", "")


def test_list_of_an_empty_vault(run: Run) -> None:
    assert run("list") == (0, "no points\n", "")
    assert run("list", "web") == (0, "no points of web\n", "")
    assert json.loads(run("list", "--json")[1]) == {"points": [], "interrupted": [], "damaged": []}


def test_list_filters_by_guest_and_reports_damage(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    put(manifest())
    put(manifest(domain="mail", capture="c2"))
    code, out, _ = run("list", "mail")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail"]
    (put(manifest(domain="odd")) / "manifest.json").write_text("{")
    code, out, err = run("list")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail", "web"]
    assert "odd" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "name", [NAME, NAME.removesuffix("_hourly"), "latest", "2026-11-20T04:00+01:00"]
)
def test_show_takes_any_name_of_the_moment(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], name: str
) -> None:
    directory = put(manifest())
    code, out, _ = run("show", f"web@{name}", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["directory"] == str(directory)
    assert shown["alive"] == [f"tank/web@{NAME}"]
    assert shown["complete_names"] == [NAME]


@pytest.mark.parametrize("text", ["web", "web@", "@x", "web@x", "nobody@" + NAME])
def test_show_of_what_is_not_there_is_one_line_and_exit_2(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], text: str
) -> None:
    put(manifest())
    code, out, err = run("show", text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err


def test_show_of_a_name_that_two_points_share_asks_which(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    first = put(manifest())
    second = put(manifest(capture="c2"))
    code, _, err = run("show", f"web@{NAME}")
    assert code == 2
    assert f"web@{first.name}, web@{second.name}" in err
    assert run("show", f"web@{second.name}")[0] == 0


def test_prune_removes_only_without_dry_run(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    kept = put(manifest())
    gone = put(
        manifest(domain="old", snapshots=(SnapshotRef("tank/old", NAME, 5, 5),), capture="c2")
    )
    code, out, _ = run("prune", "--dry-run", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert gone.exists()
    code, out, _ = run("prune", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert not gone.exists() and kept.exists()
    assert run("prune") == (0, "nothing to remove\n", "")


def test_prune_exits_1_when_something_needs_a_person(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    (put(manifest()) / "manifest.json").unlink()
    code, out, _ = run("prune")
    assert (code, out.startswith("damaged: ")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--config", "/nonexistent/config.toml", "list"], 2),
        (["no-such-command"], 2),
        (["hook", "middle"], 2),
        (["hook"], 2),
        (["-v", "hook", "pre"], 2),
        (["hook", "pre"], 2),
        (["hook", "--help"], 0),
        (["--help"], 0),
    ],
)
def test_exit_codes_of_the_real_command(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zvmsnap", *arguments],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.fixture
def seams(host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    pools.present = {f"tank/web@{NAME}": 11}
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(zfs, "snapshots", pools.snapshots)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield host
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_recover(run: Run, seams: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]) -> None:
    overlay = staged().disks[0].overlay
    moment = NAME.removesuffix("_hourly")
    found = f"  moment {moment} is open at step frozen\n  vda is on {overlay}\n"
    assert run("recover", "--dry-run")[:2] == (0, f"web: needs recovery\n{found}")
    assert guest.calls == []
    code, out, err = run("recover")
    assert (code, out) == (0, f"web: recovered\n{found}")
    assert f"warning: web (tank/web): finishing moment {moment}, which nobody finished" in err
    nothing = "nothing to recover: every guest is on its own disks\n"
    assert run("recover") == (0, nothing, "")
    assert run("recover", "web") == (0, nothing, "")


def test_recover_as_json(
    run: Run, seams: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    known = staged()
    guest.snapshots = ["by hand"]
    code, out, _ = run("recover", "--json", "web")
    report = json.loads(out)
    assert code == 0
    assert set(report) == {"dry_run", "outcomes", "removed", "problems", "foreign"}
    (outcome,) = report["outcomes"]
    assert (outcome["domain"], outcome["uuid"]) == ("web", known.uuid)
    assert (outcome["result"], outcome["why"], len(outcome["found"])) == ("recovered", "", 2)
    assert (report["dry_run"], report["problems"], len(report["foreign"])) == (False, [], 1)


def test_recover_exits_1_when_something_is_left_to_a_person(
    run: Run, seams: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    overlay = staged().disks[0].overlay

    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    guest.at["commit vda"] = fail
    code, out, _ = run("recover")
    assert (code, out.splitlines()[0][:12]) == (1, "web: failed:")
    assert "no commit" in out
    guest.exists = False
    code, out, _ = run("recover", "--json")
    (problem,) = json.loads(out)["problems"]
    assert (code, f"{overlay}: kept" in problem) == (1, True)


def test_recover_of_nobody_and_without_libvirt(run: Run, seams: FakeHost) -> None:
    code, out, err = run("recover", "nobody")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "nobody: libvirt has no such guest" in err
    seams.reachable = False
    code, out, err = run("recover")
    assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_list_tells_of_what_is_interrupted(
    run: Run, tmp_path: Path, put: Callable[[Manifest], Path], entry: Callable[..., Entry]
) -> None:
    journal = Journal(tmp_path / "journal")
    dead, alive, nameless = (f"c0ffee00-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))
    journal.write(entry(uuid=dead, domain="web", step="store"))
    journal.write(entry(uuid=alive, domain="db", owner=Process.of(os.getpid())))
    journal.write(
        entry(uuid=nameless, domain="mail", snapshot_names=(), run="", owner=Process.none())
    )
    vault.incoming(tmp_path / "vault", "web", f"{dead}.00000001")
    stray = vault.incoming(tmp_path / "vault", "a/b", f"{dead}.00000009")
    gone = tmp_path / "vault" / "web" / ".removing-x"
    gone.mkdir()
    moment = NAME.removesuffix("_hourly")
    web = [
        f"web: moment {moment} is interrupted at step store: zvmsnap recover ends it",
        f"{gone}: its removal was interrupted; zvmsnap recover ends it",
    ]
    db = f"db: moment {moment} is under way at step none (sanoid has pid {os.getpid()})"
    mail = "mail: a recovery is interrupted at step none: zvmsnap recover ends it"
    odd = f"{stray}: its publishing was interrupted; zvmsnap recover ends it"

    code, out, _ = run("list")
    assert (code, set(out.splitlines())) == (0, {*web, db, mail, odd})
    assert run("list", "web")[1].splitlines() == web
    assert run("list", "a/b")[1].splitlines() == [odd]
    assert json.loads(run("list", "--json", "db")[1]) == {
        "points": [],
        "interrupted": [db],
        "damaged": [],
    }


@pytest.mark.parametrize("command", [["list"], ["prune"], ["show", "web@x"]])
def test_a_vault_that_is_not_mounted_is_refused(
    run: Run, tmp_path: Path, put: Callable[[Manifest], Path], command: list[str]
) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "vault.id").write_bytes(b"of another")
    code, out, err = run(*command)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "is its file system mounted?" in err


@pytest.mark.parametrize("command", [["list"], ["prune"], ["recover"], ["show", "web@x"]])
@pytest.mark.parametrize("directory", ["vault", "journal", "staging", "locks"])
def test_a_file_in_place_of_a_directory_is_one_line(
    run: Run, seams: FakeHost, tmp_path: Path, command: list[str], directory: str
) -> None:
    (tmp_path / directory).write_text("foreign")
    code, _, err = run(*command)
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert (tmp_path / directory).read_text() == "foreign"
    assert code == 0 or len(err.splitlines()) == 1


def test_list_warns_of_a_format_that_cannot_be_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: "qemu.conf says sparse")
    for arguments in (["list"], ["list", "--json"]):
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (0, 1)
        assert err.endswith("error: qemu.conf says sparse\n")
