"""`zvmsnap take` and `zvmsnap drop`: points by hand, without sanoid."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zvmsnap.common import waiting
from zvmsnap.common.errors import EXIT_FAILED
from zvmsnap.common.signals import cancelled_by_signal, finish_before_dying
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.journal.journal import Journal
from zvmsnap.terminal import render
from zvmsnap.terminal.options import (
    DryRunOption,
    JsonOption,
    PointsArgument,
    YesOption,
    confirm,
    find_point,
    print_json,
    print_line,
    print_lines,
    refuse_to_ask,
)

if TYPE_CHECKING:
    from zvmsnap.capture.take import TakePlan
    from zvmsnap.points.point import RestorePoint
    from zvmsnap.points.verify_result import VerifyResult

_PROGRESS_POLL_S = 0.1


@dataclass(frozen=True)
class TakeOptions:
    """What the command line asks for: guests by name or by group, and how."""

    domains: Sequence[str]
    group: str | None
    name: str | None
    mode: str | None
    keep: int | None
    hold: str | None
    dry_run: bool

    def check(self) -> None:
        """Raises BadParameter for options that contradict each other."""
        if bool(self.domains) == (self.group is not None):
            raise typer.BadParameter("say DOMAIN..., or --group NAME")
        if self.keep and self.name:
            raise typer.BadParameter("--keep counts points with default names: not with --name")


@dataclass(frozen=True)
class TakeReport:
    """What was taken and dropped, or with `dry_run` would be."""

    plan: TakePlan
    points: Sequence[RestorePoint]
    dropped: Sequence[str]
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dry_run": self.dry_run,
            "name": self.plan.name,
            "domains": self.plan.domains,
            "datasets": self.plan.datasets,
            "points": [
                {"name": p.name, "level": p.manifest.level, "pause_s": p.manifest.timing.pause_s}
                for p in self.points
            ],
            "dropped": self.dropped,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.dry_run:
            yield f"would take {self.plan.name} of {', '.join(self.plan.domains)}:"
            yield from (f"  {dataset}" for dataset in self.plan.datasets)
        for point in self.points:
            pause_s = point.manifest.timing.pause_s
            held = f", stood still for {pause_s:.2f} s" if pause_s else ""
            yield f"{point.name}: {point.manifest.level}{held}"
        drops = "would drop" if self.dry_run else "dropped"
        yield from (f"{drops} {name}" for name in self.dropped)


def take(
    domains: Annotated[
        list[str] | None, typer.Argument(metavar="DOMAIN...", help="Guests, by name or UUID.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="All guests with a disk on a dataset with zvmsnap:group=NAME."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the snapshots; by default zvmsnap_TIME_manual.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS",
            help="Levels to try, best first: memory, paused, quiesced, crash; `required` last.",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Drop all but the newest N of the guests' points with default names."
        ),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(metavar="TAG", help="Hold the snapshots (zfs hold).")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Then start each point as a clone, check that it lives."),
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take points of one or several guests now, without sanoid.

    The guests may be on any datasets; all points are of one instant. If one guest fails, none gets
    a point, and no snapshot stays. sanoid never prunes these snapshots. Where memory is wanted the
    guests are paused, together, until all their disks are snapshotted (level paused); with
    --mode memory a guest alone runs on overlays instead.

    \b
    Examples:
      zvmsnap take web
      zvmsnap take --verify web
      zvmsnap take web db --name before-upgrade
      zvmsnap take --group shop --hold audit
      zvmsnap take web --mode quiesced,required --keep 7
    """
    options = TakeOptions(domains or [], group, name, mode, keep, hold, dry_run)
    options.check()
    settings = load_settings()
    plan = _plan(settings, options)
    points = [] if dry_run else _take(settings, plan, hold)
    report = TakeReport(plan, points, _drop_surplus(settings, plan, options), dry_run)
    if not as_json:
        print_lines(report.lines())
    results = _verify(settings, points) if verify and points else {}
    if as_json:
        verified = {name: msgspec.to_builtins(result) for name, result in results.items()}
        print_json(report.as_json() | ({"verified": verified} if verify else {}))
    else:
        lines = (f"{name}: {render.verify_result(each)}" for name, each in results.items())
        print_lines(lines)
    if not all(result.good for result in results.values()):
        raise typer.Exit(EXIT_FAILED)


def _verify(settings: Config, points: list[RestorePoint]) -> dict[str, VerifyResult]:
    from zvmsnap.cli.verify import boot_each

    return boot_each(settings, points)


def _plan(settings: Config, options: TakeOptions) -> TakePlan:
    from zvmsnap.capture import take
    from zvmsnap.virt.host import Host

    name = options.name or take.default_name()
    with Host.connect(settings.uri) as host:
        return take.plan(host, options.domains, options.group, name, options.mode)


def _take(settings: Config, plan: TakePlan, hold: str | None) -> list[RestorePoint]:
    from zvmsnap.capture import take
    from zvmsnap.retention import old_memory

    with _progress_shown(settings, plan):
        points = take.execute(settings, plan, hold, cancelled_by_signal())
    # Not before all is well: what was taken may have been taken back.
    guests = {each.manifest.uuid: (each.manifest.domain, each.manifest.datasets) for each in points}
    old_memory.tidy(settings, guests)
    return points


def _drop_surplus(settings: Config, plan: TakePlan, options: TakeOptions) -> list[str]:
    """With --keep, drop the oldest points; returns their names."""
    from zvmsnap.retention import drop

    if not options.keep:
        return []
    finish_before_dying()
    # A dry run has not made the point that the real one would count.
    keep = options.keep - 1 if options.dry_run else options.keep
    return drop.surplus(settings, plan.uuids, keep, dry_run=options.dry_run)


@contextmanager
def _progress_shown(settings: Config, plan: TakePlan) -> Iterator[None]:
    """On a terminal, print each step of each guest as the journal has it."""
    if not sys.stderr.isatty():
        yield
        return
    journal = Journal(settings.journal_dir)
    finished = threading.Event()

    def follow() -> None:
        printed: dict[str, str] = {}
        while not waiting.wait(finished, _PROGRESS_POLL_S):
            for entry in journal.entries():
                if entry.snapshot_names == (plan.name,) and printed.get(entry.uuid) != entry.step:
                    printed[entry.uuid] = entry.step
                    print_lines([f"{entry.domain}: {entry.step}"], err=True)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def drop(
    points: PointsArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove points that were taken by hand, with their snapshots.

    \b
    Examples:
      zvmsnap drop web@before-upgrade
      zvmsnap drop web@before-upgrade db@before-upgrade
    """
    from zvmsnap.retention import drop

    refuse_to_ask(as_json=as_json, yes=yes or dry_run)
    settings = load_settings()
    named = (find_point(settings, point) for point in points)
    chosen = list({point.directory: point for point in named}.values())
    snapshots = drop.snapshots(settings, chosen)
    names = [point.name for point in chosen]
    if not as_json:
        print_line(f"drop {', '.join(names)}:")
        print_lines(f"  destroy {snapshot}" for snapshot in snapshots)
    if not dry_run:
        if not yes:
            confirm()
        finish_before_dying()
        drop.destroy(settings, chosen, snapshots)
    if as_json:
        print_json({"dry_run": dry_run, "points": names, "snapshots": list(snapshots)})
