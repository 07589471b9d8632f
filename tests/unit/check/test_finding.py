from zvmsnap.check.finding import Colour, green, red, worst, yellow


def test_lines_for_people() -> None:
    assert green("a.b", "web", "is well").line() == "green   web: is well  [a.b]"
    assert yellow("a.b", "", "is odd", "set x = 1").line() == "yellow  is odd. Set x = 1  [a.b]"
    assert red("a.b", "x", "why?", "zfs list").line() == "red     x: why? zfs list  [a.b]"


def test_a_line_is_one_line_whatever_it_quotes() -> None:
    assert red("a.b", "we\nb", "is\x1b[1m bad", "mend it").line() == (
        "red     we b: is\\x1b[1m bad. Mend it  [a.b]"
    )


def test_the_worst() -> None:
    found = [green("a", "", ""), red("b", "", "", ""), yellow("c", "", "", "")]
    assert worst(found) is Colour.RED
    assert worst(found[:1]) is worst([]) is Colour.GREEN
    assert [each.exit_code for each in Colour] == [0, 1, 2]
