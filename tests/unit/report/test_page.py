"""The whole page: its parts, what it lets a browser do, and that no text becomes markup."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.report_facts import NOW, OFFSITE, console, example, host, point, points
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.report import page as page_module
from zvmsnap.report.facts import GuestFacts, HostFacts, Screen, Sent, Verified
from zvmsnap.report.page import page
from zvmsnap.watch.finding import Finding, Kind, Severity

DAY = timedelta(days=1)


class Parsed(HTMLParser):
    """What a page is made of."""

    VOID = frozenset(("meta", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def named(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for name, attributes in self.elements if name == tag)


TAGS = """html head meta title style body header main footer section div p span small b i a ul li
code h1 h2 h3 dl dt dd table thead tbody tfoot tr th td svg path text rect img figure figcaption
details summary"""
ATTRIBUTES = """class id href title alt src scope tabindex role lang charset content name http-equiv
aria-label aria-hidden viewbox preserveaspectratio width height x y d rx"""


def parsed(facts: HostFacts) -> Parsed:
    """The page, which has nothing but what it may have."""
    made = Parsed(page(facts))
    assert made.open == []
    assert {tag for tag, _ in made.elements} <= set(TAGS.split())
    assert {key for _, attributes in made.elements for key in attributes} <= set(ATTRIBUTES.split())
    assert all(re.fullmatch(r"#g\d+", each["href"]) for each in made.named("a"))
    assert all(each["src"].startswith("data:image/png;base64,") for each in made.named("img"))
    return made


def text_of(facts: HostFacts) -> str:
    return "".join(parsed(facts).texts)


def test_the_example() -> None:
    made = parsed(example())
    said = "".join(made.texts)
    assert "Restore points of hv1.example.org" in said
    assert "2 to act on: hv1.example.org" in said
    ids = [each["id"] for _, each in made.elements if "id" in each]
    assert ids == [f"g{n}" for n in range(len(example().guests))]
    # Whatever is linked is there.
    assert {each["href"][1:] for each in made.named("a")} <= set(ids)
    assert len(list(made.named("img"))) == 12
    assert len(list(made.named("h3"))) == 9


def test_nothing_needs_attention() -> None:
    said = text_of(host([]))
    assert "Nothing needs attention: hv1.example.org" in said
    assert "✓ FineNothing needs attention." in said


def test_the_policy_allows_its_own_style_and_pictures_alone() -> None:
    made = parsed(example())
    (policy,) = (each["content"] for each in made.named("meta") if "http-equiv" in each)
    style = re.search("<style>(.*)</style>", page(example()))
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "url(" not in style[1] and "@import" not in style[1]


def evil(words: str) -> HostFacts:
    """A host in which everybody says these words."""
    bad = point(
        DAY,
        run=words,
        note=words,
        warning=words,
        level=ConsistencyLevel.CRASH,
        verified=Verified.FAILED,
        verified_at=NOW,
        verified_why=words,
        destinations=(words,),
        memory_bytes=5,
    )
    guest = GuestFacts(
        words,
        (bad,),
        (Sent(words, NOW, words),),
        (Screen(words, words, console(2)), Screen(words, words, why_not=words)),
    )
    return host(
        [guest],
        name=words,
        destinations=(words,),
        found=(
            Finding(Severity.CRITICAL, Kind.AGE, words, words),
            Finding(Severity.WARNING, Kind.OFFSITE, words, f"not {words}"),
            Finding(Severity.UNKNOWN, Kind.VAULT, words),
        ),
        damaged=(f"not {words}",),
        problems=(words,),
    )


HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style></title></svg><script>",
    "--><!-- <!DOCTYPE",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "\x1b]0;owned\x07\nweb\u202e\u2066",
    "javascript:alert(1)",
    "\x00\ud800\ufffe",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_others_stays_text(words: str) -> None:
    clean, made = parsed(evil("x")), parsed(evil(words))
    assert [tag for tag, _ in made.elements] == [tag for tag, _ in clean.elements]
    assert all(line.isprintable() for line in page(evil(words)).split("\n"))
    assert page(evil(words)).encode()


@given(st.text(min_size=1, max_size=40))
def test_no_text_becomes_markup(words: str) -> None:
    made = parsed(evil(words))
    assert len(made.elements) == len(parsed(evil("x")).elements)


def test_long_texts_do_not_make_a_long_page() -> None:
    assert len(page(evil("y" * 100_000))) < len(page(evil("x"))) + 40 * 500


def test_many_findings_and_many_guests_in_one() -> None:
    guests = [GuestFacts(f"vm{n:03}", [point(n * DAY)]) for n in range(100)]
    said = text_of(host(guests, damaged=[f"/vault/{n}" for n in range(300)]))
    assert f"and {300 + 1 - page_module._SHOWN_FINDINGS} more" in said
    one = text_of(host(guests[:30]))
    assert "30 guests: no point was started within 30 days" in one and "18 more" in one


def test_a_guest_without_points_has_a_part() -> None:
    said = text_of(host([GuestFacts("new")]))
    assert "newno point" in said


def large(guests: int, each: int) -> HostFacts:
    """So many guests, with so many points and the largest pictures that a page may have."""
    kept = [timedelta(hours=n * 5, minutes=20) for n in range(each, 0, -1)]
    own = [
        GuestFacts(
            f"guest-{n:03}",
            tuple(points(kept, seed=n)),
            (Sent(OFFSITE, NOW, ""),),
            (Screen("r", "started after 3.8 s: its agent answers", console(n % 24 + 1, n)),),
        )
        for n in range(guests)
    ]
    return host(own, destinations=(OFFSITE,))


def test_100_guests_with_400_points_each() -> None:
    facts = large(100, 400)
    assert facts.points_count == 100 * 400
    begun = time.process_time()
    made = page(facts)
    took_s = time.process_time() - begun
    assert len(made.encode()) < 3 << 20
    # A guard, far above what it takes: less than half a second.
    assert took_s < 30


def test_a_guest_that_is_gone_and_one_that_was_never_sent() -> None:
    (guest,) = [each for each in example().guests if each.name == "web"]
    facts = host([replace(guest, is_defined=False, sent=(Sent(OFFSITE, None, "x"),))])
    said = text_of(facts)
    assert "no guest of that name any more" in said
    assert f"at {OFFSITE}: none" in said


def numbers(**changes: Any) -> str:
    return text_of(host([GuestFacts("web", [point(DAY, **changes)])]))


def test_the_newest_points_in_numbers() -> None:
    said = numbers(
        pause_s=0.256,
        memory_bytes=3 << 29,
        verified=Verified.STARTED,
        verified_at=NOW - timedelta(hours=3),
        destinations=(OFFSITE,),
        note="to know",
    )
    assert f"2026-11-25 09:20memory0.26 s1.5 GiB✓ started 3 h ago{OFFSITE}to know" in said
    assert "2026-11-25 09:20memory----" in numbers()
    failed = numbers(verified=Verified.FAILED, verified_at=NOW - DAY, verified_why="no agent")
    assert "✗ FAILED 24 h ago: no agent" in failed
