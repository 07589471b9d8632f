import pytest

from zvmsnap.common import log


@pytest.mark.parametrize("domain", ["web", "50%", "100%s", "%d%%"])
def test_lines_begin_with_guest_and_dataset(domain: str, caplog: pytest.LogCaptureFixture) -> None:
    about = log.about(domain, "tank/web")
    about.warning("%d MiB of %s", 3, "RAM")
    about.warning("100 % done")
    about.error("no: %s", OSError("5%"))
    assert caplog.messages == [
        f"{domain} (tank/web): 3 MiB of RAM",
        f"{domain} (tank/web): 100 % done",
        f"{domain} (tank/web): no: 5%",
    ]
    assert {record.filename for record in caplog.records} == {"test_log.py"}
