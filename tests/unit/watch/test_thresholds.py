import math

import msgspec
import pytest

from zvmsnap.common.errors import AgeInvalid
from zvmsnap.config.settings import Config, Monitor
from zvmsnap.watch.finding import Severity
from zvmsnap.watch.thresholds import Limit, said, thresholds


@pytest.mark.parametrize(
    ("properties", "option", "warn_s"),
    [
        ({}, "", 26 * 3600),
        ({}, "90m", 5400),
        ({"a": "2h"}, "90m", 7200),
        ({"a": "2h", "b": "1h"}, "", 3600),
        ({"a": "off"}, "90m", math.inf),
        ({"a": "off", "b": "3d"}, "", 3 * 86400),
    ],
)
def test_what_counts_for_an_age(
    config: Config, properties: dict[str, str], option: str, warn_s: float
) -> None:
    own = {name: {"zvmsnap:warn-age": value} for name, value in properties.items()}
    limit, wrong = thresholds(config, option).age_of(["a", "b"], own)
    assert (limit.warn_s, limit.crit_s, wrong) == (warn_s, 50 * 3600, [])


def test_an_option_that_is_no_age(config: Config) -> None:
    with pytest.raises(AgeInvalid, match="'soon' is no age: say an age as in 90m"):
        thresholds(config, "soon")


def test_of_the_configuration(config: Config) -> None:
    own = msgspec.structs.replace(config, monitor=Monitor(warn_age="1h", crit_age="off"))
    assert thresholds(own).age == Limit(3600, math.inf)
    assert thresholds(own).age.of(1e9) is Severity.WARNING


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "120m"),
        (7200, "2h"),
        (172800, "2d"),
        (math.inf, "off"),
        (-3, "0s"),
    ],
)
def test_how_ages_are_said(age_s: float, text: str) -> None:
    assert said(age_s) == text
