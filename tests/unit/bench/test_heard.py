"""What events and notes say of a round."""

from __future__ import annotations

from bench import heard


def event(at_s: float, what: str, guest: str = "web") -> dict[str, object]:
    return {"at_s": at_s, "guest": guest, "event": what}


def test_a_pause_is_from_suspended_to_resumed_of_the_same_guest() -> None:
    events = [
        event(0.0, "listening", ""),
        event(1.0, "suspended"),
        event(1.5, "suspended", "db"),
        event(3.5, "resumed"),
        event(4.0, "resumed", "db"),
        event(5.0, "suspended"),
        event(5.25, "resumed"),
    ]
    assert heard.pauses_s(events, "web") == [2.5, 0.25]
    assert heard.pauses_s(events, "db") == [2.5]
    assert heard.pauses_s(events, "nobody") == []


def test_a_pause_begins_with_the_first_of_two_suspensions_and_ends_or_is_none() -> None:
    twice = [event(1.0, "suspended"), event(2.0, "suspended"), event(4.0, "resumed")]
    assert heard.pauses_s(twice, "web") == [3.0]
    assert heard.pauses_s([event(1.0, "resumed"), event(2.0, "suspended")], "web") == []


def test_on_overlays_from_the_first_resumption_to_the_last_merge() -> None:
    events = [
        event(1.0, "suspended"),
        event(2.0, "resumed"),
        event(5.0, "merged"),
        event(6.5, "merged"),
        event(9.0, "merged", "db"),
    ]
    assert heard.overlays_s(events, "web") == 4.5
    assert heard.overlays_s(events[:2], "web") is None
    assert heard.overlays_s(events[4:], "db") is None


def test_hooks_from_the_first_beginning_to_the_last_end() -> None:
    log = "pre 10.0 11.5 0\npost 13.0 14.0 0\npost 15.0 15.25 3\n"
    assert heard.hooks_s(log) == {"pre_s": 1.5, "post_s": 2.25}
    assert heard.failed(log) == ["post"]
    assert heard.hooks_s("") == {}
