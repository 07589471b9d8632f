"""The page: one file of HTML and SVG, without a script, that loads nothing.

Its policy (Content-Security-Policy) lets a browser use its own style sheet and its own pictures
alone, whatever text from elsewhere were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime

from zvmsnap.report import attention
from zvmsnap.report.attention import Finding, Severity
from zvmsnap.report.axis import Axis
from zvmsnap.report.facts import HostFacts, Verified, amount, length
from zvmsnap.report.guest_part import guest_part
from zvmsnap.report.markup import Markup, element, joined, text
from zvmsnap.report.matrix import matrix_part
from zvmsnap.report.room import room_part
from zvmsnap.report.style import STYLE

_GUESTS_NAMED = 12  # of one finding
_SHOWN_FINDINGS = 200

_BADGES = {Severity.ACT: "✗ Act", Severity.UNKNOWN: "? Unknown", Severity.LOOK: "! Look"}


def page(host: HostFacts) -> str:
    """The whole page."""
    found = attention.findings(host)
    anchors = {guest.name: f"g{number}" for number, guest in enumerate(host.guests)}
    points = [point for guest in host.guests for point in guest.points]
    axis = Axis.of((point.created for point in points), host.now)
    body = [
        element(
            "header",
            element("h1", f"Restore points of {host.name}"),
            element("p", f"{_time(host.now)}, zvmsnap {host.version}", class_="soft"),
            _tiles(host),
        ),
        element(
            "main",
            _findings(found, anchors),
            matrix_part(host, anchors),
            room_part(host, axis),
            *(guest_part(guest, anchors[guest.name], axis, host) for guest in host.guests),
        ),
        element(
            "footer",
            "All times are local times of the host. Made by ",
            element("code", "zvmsnap report"),
            f" at {_time(host.now)}; it does not change by itself.",
        ),
    ]
    return "<!DOCTYPE html>\n" + element(
        "html", _head(host, found), element("body", *body), lang="en"
    )


def _head(host: HostFacts, found: Sequence[Finding]) -> Markup:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width,initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="robots", content="noindex"),
        element("title", f"{_verdict(found)}: {host.name}"),
        element("style", Markup(STYLE)),
    )


def _verdict(found: Sequence[Finding]) -> str:
    acts = sum(finding.severity is Severity.ACT for finding in found)
    if acts:
        return f"{acts} to act on"
    return f"{len(found)} to look at" if found else "Nothing needs attention"


def _tiles(host: HostFacts) -> Markup:
    with_points = [guest for guest in host.guests if guest.points]
    newest = max(
        (point.created for guest in with_points for point in guest.points[-1:]), default=None
    )
    started = sum(
        any(point.verified is Verified.STARTED for point in guest.points) for guest in with_points
    )
    of_all = f"of {len(with_points)} guests"
    tiles = [
        ("Guests", str(len(with_points)), "with points"),
        ("Points", str(host.points_count), f"newest {_ago(newest, host.now)}"),
        ("RAM kept", amount(host.memory_bytes), "as stored"),
        ("Proven to start", str(started), of_all),
    ]
    if host.destinations:
        offsite = sum(any(point.is_offsite for point in guest.points) for guest in with_points)
        tiles.append(("Offsite", str(offsite), of_all))
    if room := host.vault:
        free = f"{room.free_percent:.0f} %"
        of_room = f"{amount(room.free_bytes)} of {amount(room.size_bytes)}"
        tiles.append(("Vault free", free, of_room))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", detail)))
            for name, value, detail in tiles
        ),
        class_="tiles",
    )


def _ago(time: datetime | None, now: datetime) -> str:
    return f"{length(now - time)} ago" if time else "never"


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z")


def _findings(found: Sequence[Finding], anchors: dict[str, str]) -> Markup:
    if not found:
        fine = element("span", "✓ Fine", class_="badge")
        items = [element("li", fine, "Nothing needs attention.", class_="fine")]
    else:
        items = [_item(finding, anchors) for finding in found[:_SHOWN_FINDINGS]]
    if len(found) > _SHOWN_FINDINGS:
        items.append(element("li", "", f"and {len(found) - _SHOWN_FINDINGS} more"))
    return element(
        "section",
        element("h2", "What needs attention"),
        element("ul", *items, class_="findings"),
        class_="whole",
    )


def _item(finding: Finding, anchors: dict[str, str]) -> Markup:
    to_do = element("span", f"→ {finding.to_do}", class_="todo") if finding.to_do else ""
    return element(
        "li",
        element("span", _BADGES[finding.severity], class_="badge"),
        element("div", joined(_said(finding, anchors)), to_do),
        class_=str(finding.severity),
    )


def _said(finding: Finding, anchors: dict[str, str]) -> Iterator[str]:
    """What was found, behind links to its guests: of many in the end."""
    links = [_link(name, anchors) for name in finding.guests[:_GUESTS_NAMED]]
    further = len(finding.guests) - len(links)
    named = [*links, *([f"{further} more"] if further else [])]
    if len(finding.guests) == 1:
        yield named[0]
        yield f": {finding.what}"
        return
    yield f"{len(finding.guests)} guests: {finding.what}: " if named else finding.what
    for number, name in enumerate(named):
        yield ", " if number else ""
        yield name


def _link(name: str, anchors: dict[str, str]) -> Markup:
    """The name of a guest, with a link to its part if it has one."""
    return element("a", name, href=f"#{anchors[name]}") if name in anchors else text(name)
