"""Pages of docs/ as text of man pages."""

import pytest

from tools import roff

PAGE = """\
# Title

One paragraph with `code`, **bold** and
[a `link`](other.md), and [one](https://zfs.example/x) outside.

## A section

| key | default | meaning |
|---|---|---|
| `a` | `1 \\| 2` | first |
| `b` | | second |

- one
- two,
  on two lines

1. first

```sh
zfs list -H | grep '^\\.'
.dot

`tick`
```

### Below

    indented
"""

ROFF = """\
.PP
One paragraph with \\fBcode\\fR, \\fBbold\\fR and
a \\fBlink\\fR, and one (https://zfs.example/x) outside.
.SH "A SECTION"
.TP
\\fBa\\fR
default: \\fB1 | 2\\fR; first
.TP
\\fBb\\fR
second
.IP \\(bu 3
one
.IP \\(bu 3
two,
on two lines
.IP 1. 4
first
.PP
.RS 4
.nf
zfs list \\-H | grep \\(aq\\(ha\\e.\\(aq
\\&.dot

\\(gatick\\(ga
.fi
.RE
.SS "Below"
.PP
.RS 4
.nf
indented
.fi
.RE
"""


def test_all_that_docs_use() -> None:
    assert roff.of_markdown(PAGE) == ROFF.splitlines()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("an open `tick", "Markdown that no man page can show"),
        ("| a | b |\n|---|---|\n| only one |", "2 columns, and not in"),
        ("| a | b |", "no table"),
        ("```\nno end", "code without an end"),
    ],
)
def test_what_it_cannot_show_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        roff.of_markdown(text)


def test_no_line_of_text_is_a_request() -> None:
    assert roff.escaped(".TH\n'x\n-y ~ ^ \\") == "\\&.TH\n\\(aqx\n\\-y \\(ti \\(ha \\e"
