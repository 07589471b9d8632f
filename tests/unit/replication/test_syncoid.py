import io
import sys
from pathlib import Path

import pytest

from zvmsnap.common.errors import SyncoidFailed
from zvmsnap.replication import syncoid
from zvmsnap.replication.syncoid import SyncoidOptions

ALWAYS = {"--no-sync-snap", "--no-rollback", "--no-privilege-elevation"}


def fake(path: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int = 0) -> None:
    """A syncoid that only prints: for versions and failures that the lab does not have."""
    script = path / "syncoid"
    script.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit({code})\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SyncoidOptions(), set()),
        (SyncoidOptions(raw=True), {"--sendoptions=w"}),
        (SyncoidOptions(bwlimit="50M"), {"--source-bwlimit=50M"}),
        (SyncoidOptions(create_bookmark=True, use_hold=True), {"--create-bookmark", "--use-hold"}),
    ],
)
def test_command(options: SyncoidOptions, expected: set[str]) -> None:
    words = syncoid.command("tank/My VMs", "me@nas:backup/My VMs", options, readonly=True)
    assert words[0] == "syncoid" and words[-2:] == ["tank/My VMs", "me@nas:backup/My VMs"]
    chosen = {word for word in words[1:-2] if not word.startswith("--sshoption=")}
    assert chosen == ALWAYS | expected | {"--recvoptions=u o readonly=on"}
    assert "--sshoption=BatchMode=yes" in words


def test_fetched_datasets_are_writable() -> None:
    assert "--recvoptions=u" in syncoid.command("a", "b", SyncoidOptions(), readonly=False)


@pytest.mark.parametrize(
    ("output", "options", "reason"),
    [
        ("/usr/sbin/syncoid version 2.0.3", SyncoidOptions(), "is 2.0, and must be 2.1"),
        ("what?", SyncoidOptions(), "is unknown"),
        ("/usr/sbin/syncoid version 2.1.0", SyncoidOptions(use_hold=True), "use_hold needs"),
        ("/usr/sbin/syncoid version 2.2.0", SyncoidOptions(bwlimit="1M"), "needs mbuffer"),
    ],
)
def test_unsuitable_syncoid(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    options: SyncoidOptions,
    reason: str,
) -> None:
    fake(tmp_path, monkeypatch, output)
    with pytest.raises(SyncoidFailed, match=reason):
        syncoid.check(options)


def test_no_syncoid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SyncoidFailed, match="comes with sanoid"):
        syncoid.check(SyncoidOptions())


def test_suitable_syncoid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "/usr/sbin/syncoid version 2.2.0\n(Getopt::Long version 2.52)")
    syncoid.check(SyncoidOptions(create_bookmark=True, use_hold=True))


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
    ("", "syncoid failed, and does not say why"),
    ("cannot receive: \x1b[2J\tout of\x9b space", r"cannot receive: \x1b[2J out of\x9b space"),
]


@pytest.mark.parametrize(("output", "reason"), REASONS)
def test_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, reason: str
) -> None:
    fake(tmp_path, monkeypatch, output, code=2)
    with pytest.raises(SyncoidFailed) as caught:
        syncoid.run("tank/a", "backup/a", SyncoidOptions(), readonly=True)
    assert str(caught.value) == f"tank/a to backup/a: {reason}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_on_a_terminal_its_progress_is_shown_and_no_command_of_the_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    script = tmp_path / "syncoid"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"if '--version' in sys.argv: sys.exit(print('syncoid version {version}'))\n"
        f"assert any('--pv-options=' in word for word in sys.argv) is ({version} >= 2.2)\n"
        "sys.stderr.buffer.write(b'INFO: sends\\n 10%\\r caf\\xc3\\xa9 99%\\r\\n"
        "nas: \\x1b]0;owned\\x07 \\xff\\n')\nsys.exit(1)\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(SyncoidFailed) as caught:
        syncoid.run("tank/a", "backup/a", SyncoidOptions(), readonly=True)
    assert isinstance(sys.stderr, Terminal)
    shown = "INFO: sends\n 10%\r caf\u00e9 99%\r\nnas: \\x1b]0;owned\\x07 \\xff\n"
    assert sys.stderr.getvalue() == shown
    assert str(caught.value) == r"tank/a to backup/a: nas: \x1b]0;owned\x07 \xff"
