"""Streams through a pipeline of real processes: `zfs` and `mbuffer` are stand-ins on the PATH."""

import io
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


# -- what a stream says has changed


def record(kind: int, fields: dict[int, bytes], payload: bytes = b"", length: int = 0) -> bytes:
    head = bytearray(kind.to_bytes(4, "little") + length.to_bytes(4, "little")).ljust(312, b"\0")
    for at, value in fields.items():
        head[at : at + len(value)] = value
    return bytes(head) + payload


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


BEGIN = record(0, {8: number(0x2F5BACBAC)}, b"nvlist!!", 8)
END = record(5, {})


def wrote(which: int, begin: int, length: int, *, compressed: int = 0) -> bytes:
    fields = {8: number(which), 24: number(begin), 32: number(length)}
    if compressed:
        fields |= {50: b"\x0f", 96: number(compressed)}
    return record(3, fields, b"\3" * (compressed or length))


def freed(which: int, begin: int, length: int) -> bytes:
    return record(4, {8: number(which), 16: number(begin), 24: number(length)})


def test_ranges_of_a_stream() -> None:
    parts = [
        BEGIN,
        record(1, {8: number(5), 28: number(6, 4)}, b"bonus\0\0\0"),
        record(2, {8: number(100), 16: number(50)}),
        wrote(5, 0, 4096),
        wrote(6, 0, 512),
        wrote(5, 4096, 4096, compressed=100),
        freed(5, 65536, 2**63),
        record(7, {8: number(5), 16: number(512)}, bytes(512)),
        record(8, {8: number(5), 16: number(16384), 24: number(512), 52: number(9, 4)}, bytes(16)),
        END,
    ]
    ranges = stream.read_ranges(io.BytesIO(b"".join(parts) + b"more"), frozenset({5}))
    assert ranges == {5: [(0, 8192), (65536, 65536 + 2**63), (16384, 16896)]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        BEGIN,
        END,
        BEGIN + wrote(5, 0, 4096)[:-1],
        BEGIN + record(11, {}) + END,
        BEGIN + record(2, {8: number(1), 16: number(9)}) + END,
        record(0, {8: number(0x2F5BACBAD)}) + END,
    ],
)
def test_what_is_not_understood(data: bytes) -> None:
    with pytest.raises(stream.NotUnderstood):
        stream.read_ranges(io.BytesIO(data), frozenset({5}))
