import pytest

from zvmsnap.report.markup import Markup, address, drawing, element, joined, text


def test_text_is_escaped_printable_and_short() -> None:
    assert text("a<b & \"c\" 'd'") == "a&lt;b &amp; &quot;c&quot; &#x27;d&#x27;"
    assert text("red\x1b[31m\u202eback") == "red\\x1b[31m\\u202eback"
    assert text("x" * 1000) == "x" * 399 + "…"


def test_elements_escape_all_but_markup() -> None:
    inner = element("b", "<i>", class_="x")
    assert inner == '<b class="x">&lt;i&gt;</b>'
    assert element("p", inner, "&") == '<p><b class="x">&lt;i&gt;</b>&amp;</p>'
    assert joined([inner, "<"]) == f"{inner}&lt;"


def test_attributes() -> None:
    made = element("a", "x", href="#g1", title='"><script>', aria_label=3, class_=None)
    assert made == ('<a href="#g1" title="&quot;&gt;&lt;script&gt;" aria-label="3">x</a>')
    assert element("meta", name="referrer", content="no") == '<meta name="referrer" content="no">'


@pytest.mark.parametrize(
    "words", ["javascript:x", "#a b", 'data:image/png;base64,"', "data:text/html;base64,AA"]
)
def test_no_address_leads_out_of_the_page(words: str) -> None:
    with pytest.raises(ValueError):
        address(words)


def test_what_stands_as_it_is() -> None:
    assert address("#g12") == "#g12"
    assert address("data:image/png;base64,iVBO+/==") == "data:image/png;base64,iVBO+/=="
    long = [f"M{n} 0v-3" for n in range(1000)]
    assert element("path", d=drawing(long)) == Markup(f'<path d="{"".join(long)}"></path>')
    with pytest.raises(ValueError):
        drawing(['M0 0"'])
