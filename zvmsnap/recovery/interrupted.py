"""Commands that were interrupted, and left something that has no guest on an overlay.

| what                    | what becomes of it                                                     |
|-------------------------|------------------------------------------------------------------------|
| a view of a point       | all that was made for it goes (files/ending)                           |
| a chain that is merged  | QEMU's job is ended; the guest stays on its chain (flatten/run)        |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from zvmsnap.common import log
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.files import ending
from zvmsnap.files.record import View
from zvmsnap.flatten import run
from zvmsnap.flatten.work import Flattening, Flattenings
from zvmsnap.recovery.report import Outcome, Report, Result
from zvmsnap.virt.host import Host


def end(config: Config, host: Host, domain: str | None, report: Report, *, dry_run: bool) -> None:
    """End those of all guests, or of the one of that name or UUID, whose process is dead."""
    report.outcomes.extend(_outcomes(config, host, domain, dry_run=dry_run))
    if domain is None:
        report.problems.extend((*ending.dead(config)[1], *Flattenings(config.journal_dir).all()[1]))


def _outcomes(
    config: Config, host: Host, domain: str | None, *, dry_run: bool
) -> Iterator[Outcome]:
    for view in ending.dead(config)[0]:
        if domain in (None, view.domain, view.uuid):
            findings = (of_view(view),)
            result, why = _ended(partial(ending.end_dead, config, view), dry_run=dry_run)
            yield Outcome(view.domain, view.uuid, findings, result, why)
    for work in Flattenings(config.journal_dir).all()[0]:
        if domain in (None, work.domain, work.uuid) and not work.owner.is_alive():
            findings = (of_flattening(work),)
            result, why = _ended(partial(_undo, config, host, work), dry_run=dry_run)
            yield Outcome(work.domain, work.uuid, findings, result, why)


def of_view(view: View) -> str:
    """What was interrupted, in words."""
    return f"the view of {view.point} has lost its process"


def of_flattening(work: Flattening) -> str:
    """What was interrupted, in words."""
    return f"flatten of {', '.join(work.targets)} was interrupted"


def _ended(do: Callable[[], object], *, dry_run: bool) -> tuple[Result, str]:
    if dry_run:
        return Result.NEEDED, ""
    try:
        do()
    except Exception as error:
        return Result.FAILED, log.one_line(error)
    return Result.RECOVERED, ""


def _undo(config: Config, host: Host, work: Flattening) -> None:
    intent = f"recover {work.domain}"
    with lock(config.locks_dir, work.uuid, intent, config.limits.lock_timeout_s):
        guest = host.find(work.uuid)
        if guest:
            run.undo(config, guest)
        else:
            Flattenings(config.journal_dir).close(work.uuid)
