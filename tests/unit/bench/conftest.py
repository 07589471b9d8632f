"""Results of cells as a run of the benchmark would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench.results import Result

Build = Callable[..., Result]


@pytest.fixture
def result() -> Build:
    """A result of a quiet machine, with three repeats, in which the named fields are changed."""

    def build(cell: str, figures: dict[str, Any] | None = None, **changes: Any) -> Result:
        fields: dict[str, Any] = {
            "cell": cell,
            "product": "abc",
            "repeats": 3,
            "warm": True,
            "seconds": 60.0,
            "load": [[0.1, 0.2], [1.1, 0.9]],
            "elsewhere_cpus": 0.1,
            "conditions": {"date": "2026-11-26 04:00 UTC", "code": "1234567", "ZFS": "zfs-2.3.9"},
            "figures": figures or {},
            "notes": [],
        }
        return Result(**fields | changes)

    return build
