"""`zvmsnap verify`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import msgspec
import typer

from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, PointGone, PointNotFound
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.points import vault
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.terminal import completion, render
from zvmsnap.terminal.options import JsonOption, TrustOption, find_point, print_json, print_line
from zvmsnap.zfs import zfs


def verify(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[DOMAIN[@SNAPNAME]]",
            help="One point, or all of a guest; without it, all.",
            autocompletion=completion.points,
        ),
    ] = None,
    boot: Annotated[
        bool, typer.Option("--boot", help="Start each as a clone, check that it lives, remove it.")
    ] = False,
    expect_command: Annotated[
        str | None,
        typer.Option(help="A shell command that must exit with 0 in the guest; needs its agent."),
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check points: read their files, or start them as clones.

    Without --boot, every file is compared with its checksum, and the snapshots are looked up. With
    --boot, each point is started as a clone without network, which must live. The result,
    and with --boot a picture of the screen, is kept beside the point.

    \b
    Examples:
      zvmsnap verify web
      zvmsnap verify --boot web@latest
      zvmsnap verify --boot --expect-command 'systemctl is-active nginx' web@latest
    """
    settings = load_settings()
    points, damaged = _chosen(settings, which)
    _prepare(settings)
    starts = boot or expect_command
    results = dict(
        _boot(settings, points, expect_command, trust=trust) if starts else _read(points)
    )
    _tell_failures(settings, points, results)
    gone = [point.name for point in points if point.name not in results]
    if as_json:
        by_name = {name: msgspec.to_builtins(result) for name, result in results.items()}
        whys = [each.why for each in damaged]
        print_json({"points": by_name, "damaged": whys, "removed_meanwhile": gone})
    else:
        for name, result in results.items():
            print_line(f"{name}: {render.verify_result(result)}")
        for name in gone:
            print_line(f"{name}: was removed meanwhile")
        for each in damaged:
            print_line(f"damaged: {each.why}")
    good = not damaged and all(result.good for result in results.values())
    # Of one point that was named, nothing is known.
    unknown = gone and which is not None and "@" in which
    raise typer.Exit(EXIT_OK if good and not unknown else EXIT_FAILED)


def boot_each(settings: Config, points: list[RestorePoint]) -> dict[str, VerifyResult]:
    """Start points of this host as clones, and remove these; by the names of the points."""
    _prepare(settings)
    return dict(_boot(settings, points, None, trust=False))


def _prepare(settings: Config) -> None:
    """Not to be killed in the middle; and the clones of one that was are removed."""
    from zvmsnap.clone.verify import CLONES
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.recovery import recover

    finish_before_dying()
    for left in recover.end_clones(settings, CLONES):
        log.plain().error("%s", left)


def _tell_failures(
    settings: Config, points: list[RestorePoint], results: dict[str, VerifyResult]
) -> None:
    """Let the administrator's programs hear of it: points are mostly verified by a timer."""
    from zvmsnap.notify import event, notices

    for point in points:
        result, manifest = results.get(point.name), point.manifest
        if result and not result.good:
            about = {"guest": manifest.domain, "uuid": manifest.uuid, "level": str(manifest.level)}
            why = f"{point.name} did not pass zvmsnap verify: {result.why}"
            notices.note(settings, event.of(event.Kind.VERIFY, why, error="VerifyFailed", **about))


def _boot(
    settings: Config, points: list[RestorePoint], expect_command: str | None, *, trust: bool
) -> Iterator[tuple[str, VerifyResult]]:
    from zvmsnap.clone import verify
    from zvmsnap.virt.host import Host

    liveness = Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in points)))
    with Host.connect(settings.uri) as host:
        for point in points:
            with suppress(PointGone):
                result = verify.boot(settings, host, point, expect_command, trust=trust)
                if result.good or not verify.was_pruned(point, liveness):
                    yield point.name, result


def _read(points: list[RestorePoint]) -> Iterator[tuple[str, VerifyResult]]:
    from zvmsnap.clone import verify

    liveness = Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in points)))
    for point in points:
        with suppress(PointGone):
            yield point.name, verify.check_files(point, liveness)


def _chosen(settings: Config, which: str | None) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    """The point that is named, or all of the guest, or all; with the damaged ones of these.

    Raises PointNotFound.
    """
    if which is not None and "@" in which:
        return [find_point(settings, which)], []
    points, damaged = vault.read(settings)
    if which is None:
        return points, damaged
    folder = vault.folder_of(which)
    points = [point for point in points if point.manifest.domain == which]
    damaged = [each for each in damaged if each.directory.parent.name == folder]
    if not points and not damaged:
        raise PointNotFound(f"{which}: has no point; `zvmsnap list` shows all")
    return points, damaged
