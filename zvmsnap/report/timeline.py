"""The timeline of a guest, as SVG: pauses, RAM kept, and lanes for levels and what was proven.

It has no width of its own: the marks are scaled to whatever room there is, and keep their strokes;
labels stand at percentages. What a mark means is told by its lane, colour only repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from zvmsnap.config.level import RANK, ConsistencyLevel
from zvmsnap.report.axis import WIDTH, Axis
from zvmsnap.report.facts import GuestFacts, PointFacts, Verified, amount
from zvmsnap.report.markup import Markup, drawing, element

_BARS = 40  # height of a chart with bars
_GAP = 10
_LANE = 15
_AXIS = 18  # height of the labels below
# Marks that are nearer than this are drawn as one: nobody could tell them apart.
_NEAR = 4


@dataclass(frozen=True)
class Chart:
    """Bars, one for each point: `share` says how high, from 0 to 1, `largest` what 1 stands for."""

    label: str
    style: str
    largest: str
    share: Callable[[PointFacts], float]


@dataclass(frozen=True)
class Lane:
    """One row of marks, one for each point that it is about."""

    label: str
    style: str
    has: Callable[[PointFacts], bool]


def timeline(guest: GuestFacts, axis: Axis, destinations: Sequence[str]) -> Markup:
    """Labels, and beside them the charts of a guest that has points."""
    places = [(axis.x(point.created), point) for point in guest.points]
    labels: list[Markup] = []
    marks: list[Markup] = []
    height = 0
    for chart in _charts(guest):
        height += _BARS
        labels.append(_label("bars", chart.label, f"up to {chart.largest}"))
        marks += [
            element("path", class_="base", d=drawing(f"M0 {height}h{WIDTH}")),
            _bars(chart.style, height, ((x, chart.share(point)) for x, point in places)),
        ]
        height += _GAP
    for lane in _lanes(guest, destinations):
        labels.append(_label(f"lane {lane.style}", lane.label))
        marks.append(_marks(lane, height + _LANE // 2, places))
        height += _LANE
    return element(
        "div",
        element("div", *labels, class_="labels"),
        plot(height, marks, axis, _summary(guest)),
        class_="timeline",
    )


def plot(height: int, marks: Iterable[Markup], axis: Axis, summary: str) -> Markup:
    """A picture over the whole width, with the axis below; `summary` is for who cannot see it."""
    scaled = element(
        "svg",
        *(_boundary(zone.left, height) for zone in axis.zones[1:]),
        *marks,
        viewBox=f"0 0 {WIDTH} {height}",
        preserveAspectRatio="none",
        width="100%",
        height=height,
    )
    ticks = (
        element(
            "text",
            tick.label,
            x=f"{100 * tick.x / WIDTH:.1f}%",
            y=height + _AXIS - 4,
            class_="tick" if tick.is_major else "tick minor",
        )
        for tick in axis.ticks
    )
    now = element("text", "now", x="100%", y=height + _AXIS - 4, class_="tick now")
    return element(
        "svg",
        scaled,
        *ticks,
        now,
        role="img",
        aria_label=summary,
        class_="plot",
        height=height + _AXIS,
    )


def pause(pause_s: float) -> str:
    """How long a guest stood still, as `0.25 s`."""
    return f"{pause_s:.2f} s" if pause_s < 10 else f"{pause_s:.0f} s"


def path(style: str, commands: Iterable[str]) -> Markup:
    """A path of these commands; none if there are none."""
    drawn = drawing(commands)
    return element("path", class_=style, d=drawn) if drawn else Markup()


def _charts(guest: GuestFacts) -> Iterator[Chart]:
    """Those that have anything to show."""
    longest_s = max(point.pause_s for point in guest.points)
    largest_bytes = max(point.memory_bytes for point in guest.points)
    if longest_s:
        yield Chart("paused", "pause", pause(longest_s), lambda point: point.pause_s / longest_s)
    if largest_bytes:
        yield Chart(
            "RAM kept", "ram", amount(largest_bytes), lambda each: each.memory_bytes / largest_bytes
        )


def _lanes(guest: GuestFacts, destinations: Sequence[str]) -> list[Lane]:
    """Those that have anything to show."""
    levels = [Lane(str(level), str(level), partial(_is_of, level)) for level in RANK]
    levels.append(Lane("RAM removed", "lost", lambda point: point.lost_memory))
    proofs = [
        Lane("files read ○", "read", lambda point: point.verified is Verified.READ),
        Lane("started ✓", "started", lambda point: point.verified is Verified.STARTED),
        Lane("FAILED ✗", "failed", lambda point: point.verified is Verified.FAILED),
    ]
    used = [lane for lane in (*levels, *proofs) if any(map(lane.has, guest.points))]
    if destinations:
        used.append(Lane("offsite ▲", "offsite", lambda point: point.is_offsite))
    return used


def _is_of(level: ConsistencyLevel, point: PointFacts) -> bool:
    return point.level is level and not point.lost_memory


def _bars(style: str, bottom: int, heights: Iterable[tuple[int, float]]) -> Markup:
    """A bar for each place, of a height from 0 to 1; of several at one place the highest."""
    highest: dict[int, float] = {}
    for x, height in heights:
        highest[x] = max(height, highest.get(x, 0.0))
    drawn = (
        # No bar is so short that it is not seen.
        f"M{x} {bottom}v-{max(1, round(height * (_BARS - 2)))}"
        for x, height in highest.items()
        if height > 0
    )
    return path(style, drawn)


def _marks(lane: Lane, middle: int, places: Sequence[tuple[int, PointFacts]]) -> Markup:
    """A mark for each point of a lane; those that are side by side become one."""
    runs: list[list[int]] = []
    for x, point in places:
        if not lane.has(point):
            continue
        if runs and 0 <= x - runs[-1][1] <= _NEAR:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    drawn = (f"M{min(begin, WIDTH - 2)} {middle}h{max(2, end - begin)}" for begin, end in runs)
    return path(f"mark {lane.style}", drawn)


def _boundary(x: float, height: int) -> Markup:
    return element("path", class_="zone", d=drawing(f"M{x:.0f} 0v{height}"))


def _label(style: str, name: str, range_: str = "") -> Markup:
    return element("span", name, element("small", range_) if range_ else "", class_=style)


def _summary(guest: GuestFacts) -> str:
    """What the picture shows, in one sentence."""
    counts = {level: sum(p.level is level for p in guest.points) for level in RANK}
    levels = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    started = sum(point.verified is Verified.STARTED for point in guest.points)
    longest_s = max(point.pause_s for point in guest.points)
    return (
        f"Timeline of {guest.name}: {len(guest.points)} points ({levels}), {started} of them "
        f"started; paused for {pause(longest_s)} at most; {amount(guest.memory_bytes)} of RAM"
    )
