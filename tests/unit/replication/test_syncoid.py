import sys
from pathlib import Path

import pytest

from zvmsnap.common.errors import SyncoidFailed
from zvmsnap.replication import syncoid
from zvmsnap.replication.syncoid import Options

ALWAYS = {"--no-sync-snap", "--no-rollback", "--no-privilege-elevation"}


def fake(path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int = 0) -> None:
    """A syncoid that only says something: for versions, and failures, that the lab has not."""
    script = path / "syncoid"
    script.write_text(f"#!{sys.executable}\nprint({says!r})\nraise SystemExit({code})\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(), set()),
        (Options(raw=True), {"--sendoptions=w"}),
        (Options(bwlimit="50M"), {"--source-bwlimit=50M"}),
        (Options(create_bookmark=True, use_hold=True), {"--create-bookmark", "--use-hold"}),
    ],
)
def test_command(options: Options, expected: set[str]) -> None:
    words = syncoid.command("tank/My VMs", "me@nas:far/My VMs", options, readonly=True)
    assert words[0] == "syncoid" and words[-2:] == ["tank/My VMs", "me@nas:far/My VMs"]
    said = {word for word in words[1:-2] if not word.startswith("--sshoption=")}
    assert said == ALWAYS | expected | {"--recvoptions=u o readonly=on"}
    assert "--sshoption=BatchMode=yes" in words


def test_what_comes_home_may_be_written_to() -> None:
    assert "--recvoptions=u" in syncoid.command("a", "b", Options(), readonly=False)


@pytest.mark.parametrize(
    ("says", "options", "why"),
    [
        ("/usr/sbin/syncoid version 2.0.3", Options(), "is 2.0, and must be 2.1"),
        ("what?", Options(), "is unknown"),
        ("/usr/sbin/syncoid version 2.1.0", Options(use_hold=True), "use_hold needs"),
        ("/usr/sbin/syncoid version 2.2.0", Options(bwlimit="1M"), "needs mbuffer"),
    ],
)
def test_one_that_cannot_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, options: Options, why: str
) -> None:
    fake(tmp_path, monkeypatch, says)
    with pytest.raises(SyncoidFailed, match=why):
        syncoid.check(options)


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SyncoidFailed, match="comes with sanoid"):
        syncoid.check(Options())


def test_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "/usr/sbin/syncoid version 2.2.0\n(Getopt::Long version 2.52)")
    syncoid.check(Options(create_bookmark=True, use_hold=True))


REASONS = [
    (
        "cannot receive new filesystem stream: out of space\n"
        "CRITICAL ERROR:  zfs send  'a'@'b' | zfs receive 'c' failed: 256 at /sbin/syncoid line 5.",
        "cannot receive new filesystem stream: out of space",
    ),
    (
        "ssh: connect to host nas port 22: Connection refused\n"
        "CRITICAL ERROR: ssh connection echo test failed for me@nas with exit code 255",
        "ssh: connect to host nas port 22: Connection refused",
    ),
    ("", "syncoid failed, and said why above"),
]


@pytest.mark.parametrize(("says", "why"), REASONS)
def test_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, why: str) -> None:
    fake(tmp_path, monkeypatch, says, code=2)
    with pytest.raises(SyncoidFailed) as caught:
        syncoid.run("tank/a", "far/a", Options(), readonly=True)
    assert str(caught.value) == f"tank/a to far/a: {why}"
