import json
from pathlib import Path

import msgspec
import pytest

from zvmsnap.config.destination import Destination
from zvmsnap.replication import send_status
from zvmsnap.replication.send_status import SendStatus, SentDataset
from zvmsnap.terminal import render_sends

NAS, USB = Destination("me@nas", "backup/off"), Destination("", "usb/off")
UUID = "c0ffee00-0000-4000-8000-000000000001"
GOOD = SendStatus(
    destination=NAS.name,
    domain="web",
    uuid=UUID,
    last_attempt="2026-11-20T03:00:00+00:00",
    datasets=(
        SentDataset(
            dataset="t/web",
            target="backup/off/t/web",
            newest="s",
            guid=1,
            stream_bytes=2,
            seconds=0,
        ),
    ),
    points=("web@s",),
    newest="s",
    newest_created="2026-11-20T02:00:00+00:00",
    newest_has_memory=True,
)


def test_write_and_read(tmp_path: Path) -> None:
    assert send_status.read_all(tmp_path)[0] == []
    other = msgspec.structs.replace(GOOD, destination=USB.name)
    send_status.write(tmp_path, other)
    send_status.write(tmp_path, msgspec.structs.replace(GOOD, points=()))
    send_status.write(tmp_path, GOOD)
    assert send_status.read_all(tmp_path)[0] == [GOOD, other]


def test_a_failure_keeps_what_was_noted_before(tmp_path: Path) -> None:
    send_status.write_failure(tmp_path, NAS.name, "web", UUID, "unreachable")
    ((status,), _) = send_status.read_all(tmp_path)
    assert (status.error, status.newest, status.domain) == ("unreachable", "", "web")
    send_status.write(tmp_path, GOOD)
    send_status.write_failure(tmp_path, NAS.name, "web", UUID, "again")
    ((status,), _) = send_status.read_all(tmp_path)
    assert status == msgspec.structs.replace(GOOD, last_attempt=status.last_attempt, error="again")
    assert status.last_attempt > GOOD.last_attempt


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"schema": 2}'])
def test_damaged(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    send_status.write(tmp_path, GOOD)
    path = next(tmp_path.glob("send-status/*/*.json"))
    path.write_bytes(data)
    assert send_status.read_all(tmp_path)[0] == []
    assert "remove it, and send again" in caplog.text


def test_another_schema_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    send_status.write(tmp_path, GOOD)
    path = next(tmp_path.glob("send-status/*/*.json"))
    path.write_bytes(b'{"schema": 3}')
    for act in (
        lambda: send_status.write(tmp_path, GOOD),
        lambda: send_status.write_failure(tmp_path, NAS.name, "web", UUID, "unreachable"),
        lambda: send_status.read_all(tmp_path)[0],
    ):
        caplog.clear()
        assert not act()
        assert f"{path}: schema 3 is not one this version reads; it was kept" in caplog.text
        assert path.read_bytes() == b'{"schema": 3}'


def test_schema_2_is_read_and_written(tmp_path: Path) -> None:
    """A file of the first version: every later version must read it."""
    kept = Path(__file__).with_name("schemas") / "send-status-2.json"
    path = tmp_path / "send-status" / "a" / "b.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(kept.read_bytes())
    ((status,), _) = send_status.read_all(tmp_path)
    assert (status.schema, status.newest_has_memory, status.datasets[0].seconds) == (2, True, 21.42)
    send_status.write(tmp_path / "again", status)
    (written,) = tmp_path.glob("again/send-status/*/*.json")
    fields = json.loads(kept.read_text())
    assert json.loads(written.read_text()) == {**fields, "plain": []}  # which came later


def test_a_damaged_status_is_replaced(tmp_path: Path) -> None:
    send_status.write(tmp_path, GOOD)
    next(tmp_path.glob("send-status/*/*.json")).write_bytes(b"{")
    send_status.write(tmp_path, GOOD)
    assert send_status.read_all(tmp_path)[0] == [GOOD]


def test_a_time_that_is_none(tmp_path: Path) -> None:
    send_status.write(tmp_path, msgspec.structs.replace(GOOD, newest_created="yesterday"))
    assert send_status.read_all(tmp_path)[0] == []


def test_status() -> None:
    failed = msgspec.structs.replace(GOOD, error="no route", newest="", newest_created="")
    table = render_sends.status([GOOD, failed], ["db"])
    assert [line.split()[:3] for line in table] == [
        ["GUEST", "DESTINATION", "NEWEST"],
        ["web", NAS.name, "s"],
        ["web", NAS.name, "none"],
        ["db", "-", "never"],
    ]
    assert table[2].endswith("FAILED: no route")
    assert render_sends.status([], []) == ["nothing was ever sent"]
