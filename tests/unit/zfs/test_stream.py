"""Streams through a pipeline of real processes: `zfs` and `mbuffer` are stand-ins on the PATH."""

import stat
from pathlib import Path

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.zfs import stream

ZFS = """#!/bin/sh
echo "$@" >> "$0.calls"
case $1 in
send) head -c 1000000 /dev/zero; {send};;
receive) {receive};;
esac
"""
SAY = "echo 'cannot {verb}: {why}' >&2; exit 1"


class Programs:
    """Stand-ins, which write down how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.write(":", 'cat > "$0.arrived"')
        mbuffer = directory / "mbuffer"
        mbuffer.write_text('#!/bin/sh\necho "$@" > "$0.calls"\nexec cat\n')
        mbuffer.chmod(stat.S_IRWXU)

    def write(self, send: str, receive: str) -> None:
        program = self.directory / "zfs"
        program.write_text(ZFS.format(send=send, receive=receive))
        program.chmod(stat.S_IRWXU)

    def run(self, **options: str | bool) -> None:
        given = {"raw": False, "bwlimit": "", **options}
        stream.send_since_bookmark("t/a#1", "t/a@2", "usb/t/a", HERE, **given)  # type: ignore[arg-type]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Programs(tmp_path)


def test_what_is_sent_arrives(programs: Programs) -> None:
    programs.run()
    calls = (programs.directory / "zfs.calls").read_text().splitlines()
    assert sorted(calls) == [
        "receive -s -u -o readonly=on usb/t/a",
        "send -i t/a#1 t/a@2",
    ]
    assert (programs.directory / "zfs.arrived").stat().st_size == 1_000_000
    programs.run(raw=True, bwlimit="50M")
    assert "send -w -i t/a#1 t/a@2" in (programs.directory / "zfs.calls").read_text()
    assert "-R 50M" in (programs.directory / "mbuffer.calls").read_text()


@pytest.mark.parametrize(
    ("send", "receive", "why"),
    [
        (":", SAY.format(verb="receive", why="out of space"), "usb/t/a: cannot receive: out of"),
        (SAY.format(verb="send", why="gone"), "cat > /dev/null", "usb/t/a: cannot send: gone"),
        ("kill -9 $$", "cat > /dev/null", "usb/t/a: the stream broke off"),
    ],
)
def test_the_reason(programs: Programs, send: str, receive: str, why: str) -> None:
    programs.write(send, receive)
    with pytest.raises(ZfsFailed, match=f"^{why}") as caught:
        programs.run(bwlimit="1M")
    assert "\n" not in str(caught.value)


def test_to_another_machine(programs: Programs, tmp_path: Path) -> None:
    """ssh hands one line to a shell there."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ "$1" = -o ]; do shift 2; done\nshift\nexec sh -c "$*"\n')
    ssh.chmod(stat.S_IRWXU)
    nas = RemoteHost("nas", tmp_path)
    target = "backup/My VMs/a"
    stream.send_since_bookmark("t/a#1", "t/a@2", target, nas, raw=False, bwlimit="150k")
    calls = (tmp_path / "zfs.calls").read_text().splitlines()
    assert f"receive -s -u -o readonly=on {target}" in calls
    assert (tmp_path / "zfs.arrived").stat().st_size == 1_000_000
    programs.write(":", SAY.format(verb="receive", why="cut"))
    with pytest.raises(ZfsFailed, match=f"^nas: {target}: cannot receive: cut$"):
        stream.send_since_bookmark("t/a#1", "t/a@2", target, nas, raw=False, bwlimit="150k")


def test_no_mbuffer(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    (programs.directory / "mbuffer").unlink()
    monkeypatch.setenv("PATH", str(programs.directory))
    with pytest.raises(ZfsFailed, match="mbuffer cannot be run: No such file"):
        programs.run(bwlimit="1M")
