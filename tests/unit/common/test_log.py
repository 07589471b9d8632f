import logging

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


def test_what_nobody_foresaw_is_one_line_and_a_traceback_for_whoever_wants_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "zvmsnap")
    try:
        dict[str, str]()["vda"]
    except KeyError as error:
        log.failure(log.about("web", "tank"), error, "no point")
    debug, line = caplog.records
    assert line.getMessage().startswith("web (tank): no point: KeyError at test_log.py:")
    assert line.getMessage().endswith(": 'vda'")
    assert debug.levelno == logging.DEBUG
    assert debug.exc_info
    log.failure(log.plain(), OSError("no space"))
    assert caplog.messages[-1] == "no space"
