"""The bar chart of how long guests stand still."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.cells import MEMORY, PAUSED, TAKE, USUAL
from bench.results import Result
from bench.spread import median
from bench.tables import round_cells

# What pygal lays in it though it draws nothing: comments with the date, and its configuration.
_UNDRAWN = re.compile(rb"<!--.*?-->|<script.*?</script>", re.S)
_WAYS = {USUAL: "usual shell hooks", MEMORY: "memory", PAUSED: "paused", TAKE: "zvmsnap take"}


def svg(found: Mapping[str, Result]) -> bytes:
    """An SVG without scripts; the same for the same results."""
    import pygal
    from pygal.style import CleanStyle

    rounds = round_cells(found)[::-1]  # the first one is drawn at the bottom
    chart = pygal.HorizontalBar(
        js=[],
        style=CleanStyle(font_family="sans-serif", value_font_size=10, label_font_size=12),
        width=900,
        height=120 + 75 * max(1, len(rounds)),
        truncate_label=-1,
        legend_at_bottom=True,
        print_values=True,
        print_values_position="top",
        formatter=lambda seconds: "" if seconds is None else f"{seconds:.1f}",
        title="Seconds that the guest stands still (median)",
    )
    chart.uuid = "pauses"
    chart.x_labels = [result.cell.removeprefix("round:").replace(":", ", ") for result in rounds]
    for way, title in _WAYS.items():
        chart.add(title, [median(result.of(way, "pause_s")) for result in rounds])
    drawn: bytes = chart.render()
    return _UNDRAWN.sub(b"", drawn)
