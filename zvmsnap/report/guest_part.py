"""The part of the page about one guest: its timeline, its screens, its newest points."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from zvmsnap.report.axis import Axis
from zvmsnap.report.facts import (
    TABLED,
    GuestFacts,
    HostFacts,
    PointFacts,
    Screen,
    Verified,
    amount,
    length,
)
from zvmsnap.report.markup import Markup, address, element
from zvmsnap.report.screens import data_uri
from zvmsnap.report.timeline import pause, timeline

_TITLES = ("Taken", "Level", "Paused", "RAM", "Verified", "Offsite", "To know")


def guest_part(guest: GuestFacts, anchor: str, axis: Axis, host: HostFacts) -> Markup:
    """All about one guest."""
    parts = (
        (timeline(guest, axis, host.destinations), _screens(guest), _newest(guest, host.now))
        if guest.points
        else ()
    )
    return element(
        "section",
        element(
            "header",
            element("h3", guest.name),
            element("p", ", ".join(_facts(guest, host.now))),
        ),
        *parts,
        class_="guest",
        id=anchor,
    )


def _facts(guest: GuestFacts, now: datetime) -> Iterator[str]:
    if guest.newest is None:
        yield "no point"
        return
    count = len(guest.points)
    yield f"{count} points" if count > 1 else "1 point"
    yield f"newest {length(now - guest.newest.created)} old"
    if guest.memory_bytes:
        yield f"RAM {amount(guest.memory_bytes)}"
    for sent in guest.sent:
        if sent.newest:
            yield f"at {sent.destination}: newest {length(now - sent.newest)} old"
        else:
            yield f"at {sent.destination}: none"
    if guest.is_defined is False:
        yield "no guest of that name any more"


def _screens(guest: GuestFacts) -> Markup:
    figures = [_figure(guest, screen) for screen in guest.screens]
    return element("div", *figures, class_="screens") if figures else Markup()


def _figure(guest: GuestFacts, screen: Screen) -> Markup:
    caption = element("figcaption", f"{screen.run}, {screen.caption}")
    if not screen.png:
        why = f"{screen.run}, {screen.caption}; its screen is not shown: {screen.why_not}"
        return element("figure", element("figcaption", why))
    said = f"Screen of {guest.name}, started from {screen.run}"
    return element("figure", element("img", alt=said, src=address(data_uri(screen.png))), caption)


def _newest(guest: GuestFacts, now: datetime) -> Markup:
    """The newest points, one by one, for who wants numbers or cannot see the timeline."""
    shown = guest.points[-TABLED:][::-1]
    rows = (element("tr", *_row(point, now)) for point in shown)
    table = element(
        "table",
        element("thead", element("tr", *(element("th", title, scope="col") for title in _TITLES))),
        element("tbody", *rows),
        class_="points",
    )
    named = f"The {len(shown)} newest points" if len(shown) > 1 else "Its point"
    return element(
        "details",
        element("summary", named),
        element("div", table, class_="wide"),
    )


def _row(point: PointFacts, now: datetime) -> Iterator[Markup]:
    yield element("th", point.created.strftime("%Y-%m-%d %H:%M"), scope="row", title=point.run)
    yield element("td", str(point.level))
    yield element("td", pause(point.pause_s) if point.pause_s else "-")
    yield element("td", amount(point.memory_bytes) if point.memory_bytes else "-")
    yield element("td", _verified(point, now))
    yield element("td", ", ".join(point.destinations) or "-")
    yield element("td", point.note)


def _verified(point: PointFacts, now: datetime) -> str:
    if point.verified_at is None:
        return "-"
    ago = f"{length(now - point.verified_at)} ago"
    if point.verified is Verified.FAILED:
        return f"✗ FAILED {ago}: {point.verified_why}"
    return f"✓ {'started' if point.verified is Verified.STARTED else 'read'} {ago}"
