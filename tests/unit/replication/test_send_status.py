from pathlib import Path

import msgspec
import pytest

from zvmsnap.cli import render
from zvmsnap.config.destination import Destination
from zvmsnap.replication import send_status
from zvmsnap.replication.send_status import SendStatus, SentDataset

NAS, USB = Destination("me@nas", "far/off"), Destination("", "usb/off")
UUID = "c0ffee00-0000-4000-8000-000000000001"
GOOD = SendStatus(
    destination=NAS.name,
    domain="web",
    uuid=UUID,
    last_attempt="2026-11-20T03:00:00+00:00",
    datasets=(
        SentDataset(
            dataset="t/web", target="far/off/t/web", newest="s", guid=1, stream_bytes=2, seconds=0
        ),
    ),
    points=("web@s",),
    newest="s",
    newest_created="2026-11-20T02:00:00+00:00",
    newest_has_memory=True,
)


def test_kept_and_read(tmp_path: Path) -> None:
    assert send_status.read(tmp_path) == []
    other = msgspec.structs.replace(GOOD, destination=USB.name)
    send_status.keep(tmp_path, USB, other)
    send_status.keep(tmp_path, NAS, msgspec.structs.replace(GOOD, points=()))
    send_status.keep(tmp_path, NAS, GOOD)
    assert send_status.read(tmp_path) == [GOOD, other]


def test_a_failure_leaves_what_was_sent_before(tmp_path: Path) -> None:
    send_status.keep_failure(tmp_path, NAS, "web", UUID, "unreachable")
    (found,) = send_status.read(tmp_path)
    assert (found.error, found.newest, found.domain) == ("unreachable", "", "web")
    send_status.keep(tmp_path, NAS, GOOD)
    send_status.keep_failure(tmp_path, NAS, "web", UUID, "again")
    (found,) = send_status.read(tmp_path)
    assert found == msgspec.structs.replace(GOOD, last_attempt=found.last_attempt, error="again")
    assert found.last_attempt > GOOD.last_attempt


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"schema": 1}'])
def test_damaged(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    send_status.keep(tmp_path, NAS, GOOD)
    path = next(tmp_path.glob("send-status/*/*.json"))
    path.write_bytes(data)
    assert send_status.read(tmp_path) == []
    assert "remove it, and send again" in caplog.text


def test_a_time_that_is_none(tmp_path: Path) -> None:
    send_status.keep(tmp_path, NAS, msgspec.structs.replace(GOOD, newest_created="yesterday"))
    assert send_status.read(tmp_path) == []


def test_status() -> None:
    failed = msgspec.structs.replace(GOOD, error="no route", newest="", newest_created="")
    table = render.status([GOOD, failed], ["db"])
    assert [line.split()[:3] for line in table] == [
        ["GUEST", "DESTINATION", "NEWEST"],
        ["web", NAS.name, "s"],
        ["web", NAS.name, "none"],
        ["db", "-", "never"],
    ]
    assert table[2].endswith("FAILED: no route")
    assert render.status([], []) == ["nothing was ever sent"]
