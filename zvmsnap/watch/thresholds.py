"""From when on something is worth a warning, or critical. Pure.

Of the age of a guest's newest point, the first of these that says something counts:

    zvmsnap:warn-age, zvmsnap:crit-age    of the datasets of its disks; of several the shortest
    --warn-age, --crit-age                of the command
    [monitor] warn_age, crit_age          of config.toml
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zvmsnap.common.errors import AgeInvalid
from zvmsnap.config.age import parse_age
from zvmsnap.config.properties import CRIT_AGE, WARN_AGE
from zvmsnap.config.settings import Config
from zvmsnap.watch.finding import Severity


@dataclass(frozen=True)
class Limit:
    """Ages in seconds; infinite if there is no limit."""

    warn_s: float
    crit_s: float

    def of(self, age_s: float) -> Severity:
        """How bad is that age?"""
        if age_s > self.crit_s:
            return Severity.CRITICAL
        return Severity.WARNING if age_s > self.warn_s else Severity.OK

    @property
    def least_s(self) -> float:
        """From when on it is not well."""
        return min(self.warn_s, self.crit_s)


@dataclass(frozen=True)
class Thresholds:
    """Those of the command and the configuration; of a guest by `age_of`."""

    age: Limit
    overlay: Limit
    verify: Limit
    offsite: Limit
    warn_room_percent: float
    crit_room_percent: float

    def age_of(
        self, datasets: Iterable[str], properties: Mapping[str, Mapping[str, str]]
    ) -> tuple[Limit, list[str]]:
        """Of the newest point of a guest with disks there; and what is no age."""
        own = sorted(datasets)
        wrong: list[str] = []

        def shortest(name: str, default_s: float) -> float:
            ages = []
            for dataset in own:
                text = properties.get(dataset, {}).get(name, "")
                try:
                    ages += [parse_age(text)] if text else []
                except AgeInvalid as error:
                    wrong.append(f"{dataset}: {name}={error}")
            return min(ages, default=default_s)

        warn_s, crit_s = shortest(WARN_AGE, self.age.warn_s), shortest(CRIT_AGE, self.age.crit_s)
        return Limit(warn_s, crit_s), wrong

    def of_room(self, free_percent: float) -> Severity:
        """How bad is it that so much is left?"""
        if free_percent < self.crit_room_percent:
            return Severity.CRITICAL
        return Severity.WARNING if free_percent < self.warn_room_percent else Severity.OK


def thresholds(config: Config, warn_age: str = "", crit_age: str = "") -> Thresholds:
    """Those of the configuration, but for what the command says. Raises AgeInvalid."""
    own = config.monitor

    def limit(warn: str, crit: str) -> Limit:
        return Limit(parse_age(warn), parse_age(crit))

    return Thresholds(
        age=limit(warn_age or own.warn_age, crit_age or own.crit_age),
        overlay=limit(own.warn_overlay, own.crit_overlay),
        verify=limit(own.warn_verify, own.crit_verify),
        offsite=limit(own.warn_offsite, own.crit_offsite),
        warn_room_percent=own.warn_room_percent,
        crit_room_percent=own.crit_room_percent,
    )


def said(age_s: float) -> str:
    """`26h`, `3d`, as thresholds are said; the two largest units would be too exact for a pager."""
    if math.isinf(age_s):
        return "off"
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f}{unit}"
    return f"{max(0.0, age_s):.0f}s"
