"""What several repeats say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Least, middle and largest of some figures."""

    least: float
    middle: float
    most: float

    def __str__(self) -> str:
        """As `1.20 (1.10 to 1.30)`; a single figure alone."""
        if self.least == self.most:
            return shown(self.middle)
        return f"{shown(self.middle)} ({shown(self.least)} to {shown(self.most)})"


def spread(figures: Sequence[float]) -> Spread | None:
    """Of no figures there is none."""
    if not figures:
        return None
    return Spread(min(figures), statistics.median(figures), max(figures))


def median(figures: Sequence[float]) -> float | None:
    """Of no figures there is none."""
    return statistics.median(figures) if figures else None


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of the medians; None if one is missing, or there is nothing to divide by."""
    over, under = median(ours), median(theirs)
    return over / under if over is not None and under else None


def shown(figure: float) -> str:
    """With as many digits as say something."""
    if figure >= 100:
        return f"{figure:.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
