import json
from collections.abc import Callable

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.journal import describe
from zvmsnap.journal.entry import Entry

Run = Callable[..., tuple[int, str, str]]


def test_recover(
    run: Run, overlaid_host: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    entry = staged()
    reasons = (
        f"  {describe.work(entry)} is open at step frozen\n  vda is on {entry.disks[0].overlay}\n"
    )
    assert run("recover", "--dry-run")[:2] == (0, f"web: needs recovery\n{reasons}")
    assert guest.calls == []
    code, out, err = run("recover")
    assert (code, out) == (0, f"web: recovered\n{reasons}")
    assert "warning: web (tank/web): finishing" in err
    nothing = "nothing to recover: every guest is on its own disks\n"
    assert run("recover") == (0, nothing, "")
    assert run("recover", "web") == (0, nothing, "")


def test_recover_says_who_is_in_the_way(
    run: Run, overlaid_host: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    staged()
    guest.job, guest.kind_of_job, guest.block_jobs = True, "backup", {"vda"}
    code, out, _ = run("recover")
    assert (code, out.splitlines()[0]) == (
        1,
        "web: failed: web: a job (backup) on vda is under way since more than 60 s",
    )
    waits = "  it waits for a job (backup) on vda, which is not zvmsnap's"
    assert waits in run("recover", "--dry-run")[1].splitlines()


def test_recover_as_json(
    run: Run, overlaid_host: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    entry = staged()
    guest.snapshots = ["by hand"]
    code, out, _ = run("recover", "--json", "web")
    report = json.loads(out)
    assert code == 0
    assert set(report) == {"json_version", "dry_run", "outcomes", "removed", "problems", "foreign"}
    (outcome,) = report["outcomes"]
    assert (outcome["domain"], outcome["uuid"]) == ("web", entry.uuid)
    assert (outcome["result"], outcome["why"], len(outcome["findings"])) == ("recovered", "", 2)
    assert (report["dry_run"], report["problems"], len(report["foreign"])) == (False, [], 1)


def test_recover_exits_1_if_it_needs_a_person(
    run: Run, overlaid_host: FakeHost, guest: FakeGuest, staged: Callable[..., Entry]
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


def test_recover_of_no_guest_and_without_libvirt(run: Run, overlaid_host: FakeHost) -> None:
    code, out, err = run("recover", "nobody")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "nobody: libvirt has no such guest" in err
    overlaid_host.reachable = False
    code, out, err = run("recover")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
