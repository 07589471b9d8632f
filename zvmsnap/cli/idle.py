"""`zvmsnap idle`."""

from __future__ import annotations

from typing import Annotated

import typer

from zvmsnap.common import log, waiting
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.config.settings import load_settings
from zvmsnap.terminal.options import print_line, print_lines

_POLL_S = 1.0


def idle(
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait so long for its end.")
    ] = 0,
) -> None:
    """Say which runs, restores and clones are under way; exit with 1 if there are any.

    Ask before you replace zvmsnap itself: what is under way would go on with the code of another
    version. The Debian package waits so before an upgrade. Sends and pruning do not count.

    \b
    Example:
      zvmsnap idle --wait 600        before an upgrade
    """
    from zvmsnap.recovery.under_way import under_way

    settings = load_settings()
    deadline_s = waiting.now_s() + wait_s
    said: list[str] = []
    while (lines := under_way(settings)) and waiting.now_s() < deadline_s:
        if lines != said:
            log.plain().info("waiting for what is under way: %s", "; ".join(lines))
            said = lines
        waiting.sleep(_POLL_S)
    if lines:
        print_lines(lines)
    else:
        print_line("nothing is under way")
    raise typer.Exit(EXIT_FAILED if lines else EXIT_OK)
