"""Ages as administrators say them: `90m`, `36h`, `14d`, or `off` for no limit. Pure."""

from __future__ import annotations

import math
import re

from zvmsnap.common.errors import AgeInvalid
from zvmsnap.config.mode import OFF

VALUES = f"an age as in 90m, 36h or 14d, or {OFF}"

_LIMITED = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_age(text: str) -> float:
    """Read an age, in seconds; `off` is without end. Raises AgeInvalid."""
    if text == OFF:
        return math.inf
    match = _LIMITED.fullmatch(text)
    if not match:
        raise AgeInvalid(f"{text!r} is no age: say {VALUES}")
    return int(match[1]) * _UNITS_S[match[2]]
