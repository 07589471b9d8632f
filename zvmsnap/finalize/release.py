"""A guest leaves its overlays, whatever became of it: every way out of a moment leads through here.

seen       which snapshots there are (ties)
wait       until no job of libvirt is under way: one whose caller was killed goes on
let go     if it stands still because of us (still)
commit     a running guest: merge and pivot (blockcommit)
merge      one that is off: qemu-img, then its definition (offline)
prove      live and persistent definition name the bases
resume     by the table at `_is_ours_to_resume`
tidy       overlays that are proven worthless go, all others are kept
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from zvmsnap.common.errors import CommitFailed, DomainGone, ZvmsnapError
from zvmsnap.common.log import Logger
from zvmsnap.common.steps import StepFailed
from zvmsnap.config.settings import Config
from zvmsnap.disks import live_commit, offline_commit, overlay_chain, qemu_img
from zvmsnap.disks.jobs import wait_idle
from zvmsnap.disks.overlay_chain import OverlayChain, images_of
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal import other_versions, snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.quiesce.thaw import resume_or_thaw
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest, Pause

# A guest may be shut off while it is committed, or be started while it is merged.
_ATTEMPTS = 3


def release(config: Config, guest: Guest, work: EntryWriter, log: Logger) -> None:
    """Bring a guest to its bases. The caller holds its lock. Raises ZvmsnapError and OSError.

    May be repeated after any interruption. When it raises, no data is lost: what the guest wrote
    is in its overlays, which are kept.
    """
    snapshot_match.note(work, log)
    if work.entry.frozen:
        _let_go(config, guest, work, log)  # at once: nothing in it can write meanwhile
    if work.entry.dump_may_continue:
        # A dump goes on in libvirt when its caller was killed, and ends on overlays, or paused.
        wait_idle(guest, config.limits.busy_timeout_s)
    _let_go(config, guest, work, log)
    left = _to_base(config, guest, work, log)
    _resume(guest, work.entry, was_on_overlay=bool(left), log=log)
    if guest.is_active() and work.entry.original_downtime_ms is not None:
        guest.migrate_set_max_downtime_ms(work.entry.original_downtime_ms)
    work.step("tidy", lambda: _tidy(config, guest, work.entry, left, log))


def _let_go(config: Config, guest: Guest, work: EntryWriter, log: Logger) -> None:
    if not work.entry.holds_guest:
        return
    try:
        work.step("let go", lambda: resume_or_thaw(config, guest, work, log))
    except StepFailed as error:
        if isinstance(error.cause, DomainGone):
            raise error.cause from error
        raise


def _to_base(
    config: Config, guest: Guest, work: EntryWriter, log: Logger
) -> dict[str, OverlayChain]:
    """Returns the stacks that were left."""
    left: dict[str, OverlayChain] = {}
    limit_s = config.limits.commit_timeout_s

    def leaving(target: str, do: Callable[[], None]) -> None:
        work.note(committed_overlays=(*work.entry.committed_overlays, *left[target].overlays))
        work.step(f"release {target}", do)

    for attempt in range(_ATTEMPTS):
        active = guest.is_active()
        found = overlay_chain.of(domain_xml.parse(guest.xml()))
        if not found:
            break
        left.update(found)
        if work.entry.snapshots_at_release == ():
            work.note(released_early=True)
        _forget_merged(work, found)
        try:
            if active:
                work.step("commit", partial(live_commit.to_base, guest, found, limit_s, leaving))
            else:
                log.warning("is off while on its overlays: merging them with qemu-img")
                offline_commit.to_base(guest, found, leaving, work.step)
            break
        except ZvmsnapError:
            if attempt == _ATTEMPTS - 1 or guest.is_active() == active:
                raise
    _mend_persistent(guest, work)
    named = {
        target: OverlayChain(target, s.overlays)
        for target, s in overlay_chain.of_guest(guest).items()
    }
    expected = {
        disk.target: OverlayChain(disk.target, (disk.overlay,))  # wherever else it may be by now
        for disk in work.entry.disks
        if disk.overlay
    }
    live_commit.prove(guest, expected | named | left)
    return left


def _forget_merged(work: EntryWriter, found: dict[str, OverlayChain]) -> None:
    """Left once, but still or again in use: what was written since then is not merged."""
    on = {overlay for stack in found.values() for overlay in stack.overlays}
    if on & set(work.entry.committed_overlays):
        work.note(
            committed_overlays=tuple(
                path for path in work.entry.committed_overlays if path not in on
            )
        )


def _mend_persistent(guest: Guest, work: EntryWriter) -> None:
    """The next start must not use an overlay that the running guest has left."""
    if not guest.is_active() or not guest.is_persistent():
        return
    live = {disk.target: disk.source for disk in domain_xml.parse(guest.xml()).disks}
    stale = {
        target: stack
        for target, stack in overlay_chain.of(domain_xml.parse(guest.xml(persistent=True))).items()
        if stack.base and live.get(target) == stack.base
    }
    if stale:
        work.step("redefine", lambda: offline_commit.redefine(guest, stale))


def _resume(guest: Guest, entry: Entry, *, was_on_overlay: bool, log: Logger) -> None:
    pause = guest.pause_reason()
    if pause and _is_ours_to_resume(pause, entry, was_on_overlay=was_on_overlay):
        log.warning("stands still because of %s: resuming it", pause.value)
        guest.resume()


def _is_ours_to_resume(pause: Pause, entry: Entry, *, was_on_overlay: bool) -> bool:
    """Decide for a guest that stands still while no job is under way.

    | stands still because of  | and                           | resumed |
    |--------------------------|-------------------------------|---------|
    | an I/O error             | it was on our overlay (full?) | yes     |
    | somebody's wish          | the journal says it was us    | yes     |
    | a job that died          | its RAM was being dumped      | yes     |
    | anything else            |                               | no      |
    """
    if pause is Pause.IO_ERROR:
        return was_on_overlay
    if pause is Pause.USER:
        return entry.paused
    return pause is Pause.JOB and entry.dump_may_continue


def _tidy(
    config: Config, guest: Guest, entry: Entry, left: dict[str, OverlayChain], log: Logger
) -> None:
    in_use = images_of(guest)
    directory = StagingDir(config.staging_dir / entry.capture)
    directory.check()
    candidates = {str(path) for path in directory.overlays()}
    candidates |= {overlay for stack in left.values() for overlay in stack.overlays}
    for overlay in sorted(candidates):
        path = Path(overlay)
        if overlay in in_use:
            raise CommitFailed(f"{guest.name}: {overlay} is in use again; kept")
        if not path.exists():
            continue
        if overlay in entry.committed_overlays or qemu_img.holds_nothing(overlay):
            path.unlink()
        else:
            # Its guest was brought back to the base by somebody who need not have merged it.
            log.warning("%s holds writes that we have not merged: kept; see to it", overlay)
    for stack in left.values():
        for overlay in stack.overlays:
            _remove_capture_of(config, Path(overlay), entry)
    for name in set(guest.snapshot_names()) & set(entry.snapshot_names):
        # Older scripts name libvirt's snapshots as sanoid's; reverting to such a one after our
        # commit would load old RAM over new disks.
        log.warning("forgetting libvirt's snapshot metadata %s", name)
        guest.snapshot_delete_metadata(name)


def _remove_capture_of(config: Config, overlay: Path, entry: Entry) -> None:
    """A capture that no journal knows has nobody else to remove it."""
    directory = StagingDir(overlay.parent)
    if overlay.parent.name == entry.capture or directory.overlays():
        return
    # Another version's entry may stand for this capture, and for its RAM image.
    if entry.uuid not in other_versions.guests(config.journal_dir):
        directory.remove()
