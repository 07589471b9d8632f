"""What keeps an answer, or fails, is one finding: no check keeps the others from running."""

import threading
from collections.abc import Iterator

import pytest

from tests.fakes.check_scene import VAULT, CheckedHost
from tests.fakes.guest import OTHER
from zvmsnap.check import facts, run
from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green
from zvmsnap.common.errors import NoAnswer, ZfsFailed
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Dataset, Pool


def lines(findings: list[Finding]) -> list[str]:
    return [each.line() for each in findings]


def test_nothing_is_found_on_a_clean_host(checked: CheckedHost) -> None:
    assert lines(checked.trouble()) == []
    assert len(checked.findings()) > 10


def test_a_guest_that_hangs_is_one_finding(checked: CheckedHost) -> None:
    checked.dataset("tank/vm/db")
    silent = checked.guest("db", OTHER, "tank/vm/db")

    def hang() -> None:
        raise NoAnswer("db: its QEMU is stopped (SIGSTOP)")

    silent.at["check_answers"] = hang
    (found,) = checked.trouble()
    assert (found.check, found.subject) == ("guest.unanswered", "db")
    assert "web: can have level memory" in " ".join(lines(checked.findings()))


def test_libvirt_that_hangs_is_one_finding(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(Host, "connect", lambda uri: hangs.wait())
    monkeypatch.setattr(facts.answer_of, "__defaults__", (0.1,))
    try:
        (found,) = checked.trouble()
    finally:
        hangs.set()
    assert (found.check, "given up" in found.text) == ("libvirt.unanswered", True)


def test_zfs_that_fails_is_one_finding(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(names: list[str]) -> None:
        raise ZfsFailed("zpool list failed (1): internal error")

    monkeypatch.setattr(zfs, "pools", fail)
    assert [each.check for each in checked.trouble()] == ["zfs.unanswered"]


def test_datasets_of_a_suspended_pool_are_not_asked_for(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def datasets(tops: list[str]) -> dict[str, Dataset]:
        asked.append(tops)
        return {}

    monkeypatch.setattr(zfs, "datasets", datasets)
    checked.pools["tank"] = Pool("tank", "SUSPENDED", 1, 1, 1)
    assert [each.check for each in checked.trouble()] == ["pool.away"]
    assert asked == [["cheap"]]


def test_a_pool_that_the_kernel_has_suspended_is_asked_nothing(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    pools = zfs.pools

    def listed(names: list[str]) -> dict[str, Pool]:
        asked.append(names)
        return pools(names)

    monkeypatch.setattr(zfs, "pools", listed)
    checked.file("proc/spl/kstat/zfs/tank/state", "SUSPENDED\n")
    checked.file("proc/spl/kstat/zfs/cheap/state", "ONLINE\n")
    (found,) = checked.trouble()
    assert (found.check, found.subject) == ("pool.away", "tank")
    assert asked == [["cheap"]]


def test_a_check_that_fails_does_not_keep_others_from_running(checked: CheckedHost) -> None:
    def bad(_facts: Facts) -> Iterator[Finding]:
        raise OSError("disk on fire")
        yield

    def good(_facts: Facts) -> Iterator[Finding]:
        yield green("a.b", "c", "is well")

    def faulty(_facts: Facts) -> Iterator[Finding]:
        yield green("a.b", "c", "x" + 1)  # type: ignore[operator]

    found = list(run.of_checks(Facts(checked.root), [bad, faulty, good]))
    assert [(each.colour, each.check) for each in found] == [
        ("red", "test_run.bad"),
        ("red", "test_run.faulty"),
        ("green", "a.b"),
    ]
    assert "disk on fire" in found[0].text
    assert "TypeError at test_run.py" in found[1].text


def test_fixes_and_what_they_say(checked: CheckedHost) -> None:
    hook = checked.root / "opt/zvmsnap/hooks/post-snapshot"
    hook.chmod(0o644)
    checked.settings.staging_dir.chmod(0o700)
    checked.units("UnitFileState=enabled\nExecStart", "UnitFileState=disabled\nExecStart")
    checked.units("USec=infinity", "USec=5min")
    done = list(run.fixed(checked.findings()))
    assert sorted(line.split()[0] for line in done) == ["fixed:"] * 4
    assert hook.stat().st_mode & 0o111 == 0o111
    assert checked.settings.staging_dir.stat().st_mode & 0o777 == 0o711
    said = (checked.root / "systemctl.log").read_text()
    assert "enable zvmsnap-recover.service" in said and "daemon-reload" in said
    drop_in = checked.root / "etc/systemd/system/sanoid.service.d/zvmsnap.conf"
    assert drop_in.read_text() == "[Service]\nTimeoutStartSec=infinity\n"


def test_recordsize_is_set_where_the_dataset_is_the_vault(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(zfs, "set_property", lambda *words: calls.append(words))
    checked.properties[VAULT]["recordsize"] = str(128 << 10)
    assert len(list(run.fixed(checked.findings()))) == 1
    assert calls == [(VAULT, "recordsize", "16K")]
    checked.properties[VAULT]["mountpoint"] = "/cheap"
    assert list(run.fixed(checked.findings())) == []
