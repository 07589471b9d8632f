"""`zvmsnap report`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from zvmsnap.config.settings import load_settings
from zvmsnap.terminal.options import print_line


def report(
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="Write the page into this file.")
    ],
) -> None:
    """Write a page that shows all guests and their points, to be opened in a browser.

    What needs attention is on top. Below: which guest has which points on which day, what was
    verified, and what is offsite; and for each guest its pauses, its RAM, and the screens of the
    points that were started. The page is one file without scripts. It shows what guests have on
    their screens: only you can read it.

    \b
    Example:
      zvmsnap report --html /root/zvmsnap.html
    """
    from zvmsnap.common import safe_files
    from zvmsnap.common.errors import ReportUnwritable
    from zvmsnap.report.gather import gather
    from zvmsnap.report.page import page

    facts = gather(load_settings(), datetime.now().astimezone())
    content = page(facts)
    try:
        safe_files.write_atomic(html.absolute(), content.encode())
    except OSError as error:
        raise ReportUnwritable(f"{html}: cannot be written: {error.strerror or error}") from error
    print_line(f"wrote {html}: {facts.points_count} points of {len(facts.guests)} guests")
