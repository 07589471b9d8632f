"""All checks, one after the other; none of them can keep the others from running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from zvmsnap.check import (
    destinations,
    guests,
    hooks,
    hypervisor,
    own,
    points,
    sanoid,
    services,
    storage,
)
from zvmsnap.check.facts import Facts, answer_of, gather
from zvmsnap.check.finding import Finding, red
from zvmsnap.common import log
from zvmsnap.common.errors import ZvmsnapError

Check = Callable[[Facts], Iterator[Finding]]

_AREAS = (sanoid, hooks, storage, hypervisor, guests, services, own, points, destinations)
# Of points there may be 10 000.
_CHECK_S = 90.0


def all_findings(root: Path = Path("/")) -> list[Finding]:
    """All that is found on this host, by area."""
    facts = gather(root)
    return [*facts.findings, *of_checks(facts, [c for area in _AREAS for c in area.CHECKS])]


def of_checks(facts: Facts, checks: Iterable[Check]) -> Iterator[Finding]:
    """What these checks find; one that fails, or does not end, becomes a finding."""
    seen: set[tuple[str, str, str]] = set()
    for check in checks:
        try:
            found = answer_of(lambda: list(check(facts)), _CHECK_S)  # noqa: B023
        except Exception as error:
            name = f"{check.__module__.rpartition('.')[2]}.{check.__name__.replace('_', '-')}"
            text = f"could not be looked at: {log.one_line(error)}"
            found = [red(name, "", text, "mend that first")]
        for each in found:
            key = (each.check, each.subject, each.text)
            if key not in seen:
                seen.add(key)
                yield each


def fixed(findings: Iterable[Finding]) -> Iterator[str]:
    """Mend what can be mended without harm; says what was done."""
    for each in findings:
        if each.fix:
            try:
                yield f"fixed: {each.fix()}"
            except (ZvmsnapError, OSError) as error:
                yield f"not fixed: {each.subject}: {error}"
