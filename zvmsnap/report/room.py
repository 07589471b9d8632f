"""Who takes the room: the RAM that is kept, by the age of its points, and by guest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from zvmsnap.report.axis import WIDTH, Axis
from zvmsnap.report.facts import GuestFacts, HostFacts, amount
from zvmsnap.report.markup import Markup, element
from zvmsnap.report.timeline import path, plot

_HEIGHT = 110
_TOP = 6
_GUESTS = 8


def room_part(host: HostFacts, axis: Axis) -> Markup:
    """A chart over time, and the guests whose RAM is largest; "" if no RAM is kept."""
    if not host.memory_bytes:
        return Markup()
    total = amount(host.memory_bytes)
    return element(
        "section",
        element("h2", "Room over time"),
        element(
            "p",
            f"RAM of all points, as stored: {total}; of the last day {_of_days(host, 1)}, of the "
            f"last 7 days {_of_days(host, 7)}, of the last 31 days {_of_days(host, 31)}. What a "
            "file system shares or compresses takes less.",
        ),
        element(
            "p",
            "The curve adds up from the oldest points to the newest. In all charts the last two "
            "days, the month before, and what is older have scales of their own.",
            class_="soft",
        ),
        element(
            "div",
            element(
                "div",
                element("span", "RAM kept", element("small", f"up to {total}"), class_="bars"),
                class_="labels",
            ),
            plot(_HEIGHT, [_area(host, axis)], axis, f"RAM kept over time, {total} in all"),
            class_="timeline",
        ),
        element("dl", *_largest(host), class_="share"),
    )


def _of_days(host: HostFacts, days: int) -> str:
    """The RAM of all points that are not older than that."""
    limit = host.now - timedelta(days=days)
    points = (point for guest in host.guests for point in guest.points)
    return amount(sum(point.memory_bytes for point in points if point.created > limit))


def _area(host: HostFacts, axis: Axis) -> Markup:
    """What all points until a time have, as an area."""
    added: dict[int, int] = {}
    for guest in host.guests:
        for point in guest.points:
            if point.memory_bytes:
                x = axis.x(point.created)
                added[x] = added.get(x, 0) + point.memory_bytes
    sum_bytes = 0
    drawn = [f"M0 {_HEIGHT}"]
    for x in sorted(added):
        sum_bytes += added[x]
        y = _HEIGHT - (_HEIGHT - _TOP) * sum_bytes / host.memory_bytes
        drawn.append(f"H{x}V{y:.0f}")
    return path("area", [*drawn, f"H{WIDTH}V{_HEIGHT}Z"])


def _largest(host: HostFacts) -> Iterator[Markup]:
    by_size = sorted(host.guests, key=_memory_bytes, reverse=True)
    for guest in by_size[:_GUESTS]:
        if not guest.memory_bytes:
            return
        share = 100 * guest.memory_bytes / by_size[0].memory_bytes
        bar = element(
            "svg",
            element("rect", width=f"{share:.1f}%", height=10, rx=2),
            height=10,
            aria_hidden="true",
        )
        yield element("dt", guest.name)
        yield element("dd", bar)
        yield element("dd", amount(guest.memory_bytes))


def _memory_bytes(guest: GuestFacts) -> int:
    return guest.memory_bytes
