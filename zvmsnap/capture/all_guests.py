"""pre: captures all guests of a run, in parallel. Afterwards they are on overlays, or held.

`one_guest` chooses the level of each guest. Slow work comes first, for all of them, so that no
guest is held while another one's RAM is written (see `FreezeBarrier`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from zvmsnap.capture import eligibility
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.capture.one_guest import GuestCapture, LevelChoice
from zvmsnap.capture.snapshot_run import (
    CaptureRequest,
    PreexistingSnapshots,
    Shared,
    SnapshotRun,
)
from zvmsnap.common import log
from zvmsnap.common.errors import (
    BackupImpossible,
    Cancelled,
    DomainGone,
    HookEnvironmentInvalid,
    ZfsFailed,
)
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import passable_dir
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.common.steps import StepFailed
from zvmsnap.common.waiting import Call, in_parallel
from zvmsnap.config.mode import ModeSet
from zvmsnap.config.properties import PREFIX, Property, faults
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, staging
from zvmsnap.disks.staging import StagingSpace
from zvmsnap.finalize.after_snapshot import finish_interrupted
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.journal.round import Round
from zvmsnap.notify.event import Kind
from zvmsnap.quiesce import watchdog
from zvmsnap.quiesce.barrier import FreezeBarrier
from zvmsnap.quiesce.together import DumpsTogether
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs

_MIB = 1 << 20


def begin(
    call: HookCall,
    config: Config,
    owner: Process,
    takes_recursively: Callable[[str], bool],
    cancelled: threading.Event,
    post_within_s: float = math.inf,
) -> bool:
    """Capture all guests that the call of a hook concerns; True if all got what they should.

    `takes_recursively`: is that one of the call's datasets snapshotted with all below it?
    Raises StagingUnusable, ZfsFailed, HypervisorUnreachable before anything is touched, and
    Cancelled after everything was undone.
    """
    datasets = zfs.datasets(call.datasets)
    for target in call.datasets:
        if target not in datasets:
            raise HookEnvironmentInvalid(f"SANOID_TARGET {target!r}: there is no such dataset")
    recursion = eligibility.recursion(call.datasets, datasets, takes_recursively)
    own_round = Round(config.locks_dir, owner)
    own_round.expect({} if call.unnamed else recursion)
    snapshotted = eligibility.snapshotted_datasets(call.datasets, datasets, recursion)
    covered = eligibility.without_excluded(snapshotted, datasets, call.types)

    def modes_for(names: Iterable[str]) -> ModeSet:
        return eligibility.modes_for(names, datasets, call.types, config.default_modes)

    guids = {name: dataset.guid for name, dataset in datasets.items()}
    return capture_guests(
        config,
        CaptureRequest(
            call,
            owner,
            covered,
            snapshotted,
            modes_for,
            cancelled,
            post_within_s,
            guids,
            may_be_late=True,
            own_round=own_round,
        ),
    )


def capture_guests(config: Config, request: CaptureRequest) -> bool:
    """Capture all guests that the request covers; results and errors are those of `begin`."""
    if not request.covered:
        return True
    table = mounts.read_table()
    with Host.connect(config.uri) as host:
        run = SnapshotRun(config, host, Journal(config.journal_dir), request, table)
        guests, datasets, complete = _concerned(run)
        if request.own_round:
            _warn_of_properties(request.own_round, {*request.call.datasets, *datasets})
        if not guests:
            log.plain().debug("%s: no guest has a disk there", ",".join(request.call.datasets))
            return complete
        # Only now, as datasets without guests need no staging at all.
        staging.check_usable(config.staging_dir, request.snapshotted, table)
        if request.post_within_s:
            watchdog.start_watchdog(request.owner, request.post_within_s)
        captured = _capture_in_parallel(run, guests)
        if request.post_within_s and _need_a_watchdog(run):
            watchdog.warn_without_watchdog(config, request.owner)
        return captured and complete


def _warn_of_properties(own_round: Round, datasets: Iterable[str]) -> None:
    """Warn of properties that mean nothing and would count for these datasets; once in a round."""
    try:
        found = [Property(*words) for words in zfs.user_properties(sorted(datasets), PREFIX)]
    except ZfsFailed as error:
        log.failure(log.plain(), error, "properties are not looked at")
        return
    for warning in own_round.new(faults(found)):
        log.plain().warning("%s", warning)


def _need_a_watchdog(run: SnapshotRun) -> bool:
    return any(
        entry.owner == run.request.owner and (entry.holds_guest or entry.may_be_on_overlay)
        for entry in run.journal.entries()
    )


def _concerned(run: SnapshotRun) -> tuple[dict[str, Guest], set[str], bool]:
    """The guests with disks on covered datasets, by UUID, and these datasets.

    False if one could not be asked.
    """
    guests = {}
    datasets: set[str] = set()
    complete = True
    for guest in run.host.guests():
        try:
            # Its disks may be on a suspended pool.
            disks = Call(partial(location.locate_disks, run.host, guest, run.mounts)).answer()
            if eligible := eligibility.assess(disks, run.request.covered):
                guests[guest.uuid] = guest
                datasets.update(eligible.datasets)
            elif doubts := eligibility.doubts_of(disks):
                run.about(guest).warning("no point: %s", "; ".join(doubts))
        except DomainGone:
            continue
        except Exception as error:
            log.failure(run.about(guest), error, "not looked at")
            run.tell(guest, Kind.NO_POINT, error)
            complete = False
    return guests, datasets, complete


def _capture_in_parallel(run: SnapshotRun, guests: Mapping[str, Guest]) -> bool:
    shared = _shared(run, guests)
    captures = {guest: partial(_capture, run, guest, shared) for guest in guests.values()}
    complete = True
    # All at once, as they wait for each other; the barrier limits the load.
    for guest, capture in in_parallel(captures, len(captures)):
        try:
            complete = capture.answer() and complete
        except Exception as error:
            complete = False
            log.failure(run.about(guest), error, "no point")
            run.tell(guest, Kind.NO_POINT, error)
        # Maybe it hangs: the others go on, and the next hook or the watchdog sees to it.
        shared.finish(guest.uuid)
    if run.request.cancelled.is_set():
        _put_back(run, guests)
        raise Cancelled("interrupted: no guest was captured")
    return complete


def _capture(run: SnapshotRun, guest: Guest, shared: Shared) -> bool:
    with guest.apart() as own:
        return GuestCapture(run, own, shared).capture()


def _shared(run: SnapshotRun, guests: Iterable[str]) -> Shared:
    preexisting = _preexisting(run.request)
    space = StagingSpace(run.config.staging_dir, run.config.limits.overlay_room_mib * _MIB)
    reserving = threading.Lock()

    def reserve(uuid: str, image_bytes: int) -> None:
        with reserving:
            space.reserve(uuid, image_bytes)

    limits = run.config.limits
    dumps = limits.parallel_dumps or staging.parallel_dumps(run.config.staging_dir)
    together = limits.parallel_dumps or staging.PARALLEL_DUMPS_MAX
    return Shared(
        preexisting,
        reserve,
        FreezeBarrier(guests, dumps),
        DumpsTogether(together, limits.memory_max_pause_s),
    )


def _preexisting(request: CaptureRequest) -> PreexistingSnapshots:
    if request.call.unnamed:
        return PreexistingSnapshots((), snapshot_match.newest_txg(request.covered))
    announced = [
        f"{dataset}@{spelling}"
        for dataset in request.covered
        for name in request.call.names
        for spelling in spellings(name)
    ]
    return PreexistingSnapshots(
        tuple(snapshot.guid for snapshot in zfs.snapshots(announced).present.values())
    )


def capture_for_backup(run: SnapshotRun, guest: Guest, eligible: Eligibility) -> Entry:
    """Capture a guest for a backup, at the best level that is wanted and that it can have.

    The caller holds its lock (`one_guest.locked`), and ends the entry that is returned: the guest
    is on overlays, or held. Raises BackupImpossible if no level that it can have is good enough,
    Cancelled, and what keeps it from all levels. What could not be undone is in the journal.
    """
    config, request = run.config, run.request
    if request.on_overlays:
        staging.check_usable(config.staging_dir, frozenset(), run.mounts)
        watchdog.require_watchdog(config, request.owner, request.post_within_s)
    else:
        passable_dir(config.staging_dir)
        watchdog.start_watchdog(request.owner, request.post_within_s)
    level = None
    with guest.apart() as own:
        choice = LevelChoice(run, own, _shared(run, [guest.uuid]), eligible)
        try:
            level = choice.reach(request.modes_for(()))
        except StepFailed:
            if not request.cancelled.is_set():
                raise
    if level is None and choice.is_interrupted:
        raise Cancelled(f"{guest.name}: interrupted: nothing of the backup is kept")
    entry = run.journal.read(guest.uuid)
    if level is None or entry is None:
        raise BackupImpossible(f"{guest.name}: {choice.why_missed()}")
    return entry


def _put_back(run: SnapshotRun, guests: Mapping[str, Guest]) -> None:
    """After an interruption nobody may call post: guests that were captured are put back too."""
    limit_s = run.config.limits.lock_timeout_s
    for uuid, guest in guests.items():
        try:
            captured = run.journal.read(uuid)
            if captured is None or captured.owner != run.request.owner:
                continue
            with run.journal.if_same(
                run.config.locks_dir, captured, f"put back {guest.name}", limit_s
            ) as entry:
                if entry:
                    finish_interrupted(run.config, run.host, guest, entry)
        except Exception as error:
            log.failure(run.about(guest), error, "not put back, the next hook tries again")
