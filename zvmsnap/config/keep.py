"""How long RAM images are kept, as administrators say it. Pure.

| value | the RAM of a point is kept                                          |
|-------|---------------------------------------------------------------------|
| `all` | as long as the point                                                |
| `24`  | while it is one of the newest 24 images of its guest                |
| `36h` | for 36 hours                                                        |
| `14d` | for 14 days                                                         |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from zvmsnap.common.errors import KeepInvalid

ALL = "all"
VALUES = "a number of points as in 24, an age as in 36h or 14d, or all"

# Six digits of days are less than what is left of the calendar.
_LIMITED = re.compile(r"(?P<count>[1-9][0-9]{0,5})(?P<unit>[hd]?)")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True)
class Keep:
    """At most so many `points`, or those of no more than this `age`; all if neither is given."""

    points: int = 0
    age: timedelta = timedelta()

    @property
    def has_end(self) -> bool:
        """Does RAM ever go before its point?"""
        return self != Keep()

    def holds(self, newer: int, age: timedelta) -> bool:
        """Is an image of that age kept, if `newer` images of the guest are newer?"""
        if self.points:
            return newer < self.points
        return not self.age or age <= self.age

    def __str__(self) -> str:
        hours, rest = divmod(self.age, _UNITS["h"])
        assert not rest
        if hours:
            return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"
        return str(self.points) if self.points else ALL


def parse_keep(text: str) -> Keep:
    """Read `24`, `36h`, `14d` or `all`. Raises KeepInvalid."""
    if text == ALL:
        return Keep()
    match = _LIMITED.fullmatch(text)
    if not match:
        raise KeepInvalid(f"{text!r} says not how long RAM is kept: say {VALUES}")
    count = int(match["count"])
    return Keep(age=count * _UNITS[match["unit"]]) if match["unit"] else Keep(count)
