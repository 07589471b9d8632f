"""Takes a guest off its overlays, whatever became of it. Every way to the end of a run leads here.

1. Note which snapshots exist (snapshot_match).
2. Step `resume or thaw`: if the guest is held (quiesce/thaw). One that is frozen is thawed first;
   for any other, 3 comes first.
3. End a dump whose caller was killed: libvirt goes on with it. Wait until no job is under way.
4. Step `redefine`: the definition of a guest that is off leaves overlays that never came to the
   disk. Step `commit`: merge and pivot the disks of a running guest (live_commit). Of one that is
   off, steps `merge vda`, `redefine`: qemu-img, and after that its definition (offline_commit).
5. Prove that live and persistent definition name the bases.
6. Resume the guest by the table at `_is_ours_to_resume`.
7. Step `tidy`: delete the overlays that are proven worthless, move all others aside
   (disks/unused_overlay).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from zvmsnap.common.errors import (
    CommitFailed,
    DomainGone,
    LibvirtFailed,
    OverlayHeld,
    ZvmsnapError,
)
from zvmsnap.common.log import Logger
from zvmsnap.common.steps import StepFailed
from zvmsnap.config.settings import Config
from zvmsnap.disks import (
    apparmor,
    jobs,
    live_commit,
    offline_commit,
    overlay_chain,
    unused_overlay,
)
from zvmsnap.disks.live_commit import ReleaseDisk
from zvmsnap.disks.overlay_chain import OverlayChain, all_overlays, images_of
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal import late, other_versions, snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.quiesce.thaw import resume_or_thaw, resume_or_thaw_unlocked
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.guest import Guest, Pause

# A guest may be shut off while it is committed, or be started while it is merged.
_ATTEMPTS = 3


def release(config: Config, guest: Guest, writer: EntryWriter, log: Logger) -> None:
    """Bring a guest to its bases. The caller holds its lock. Raises ZvmsnapError and OSError.

    May be repeated after any interruption. When it raises, no data is lost: what the guest wrote
    is in its overlays, which are kept. A guest that is held is let go even so, if that is possible.
    """
    try:
        _release(config, guest, writer, log)
    except (ZvmsnapError, OSError):
        _let_go(guest, writer.entry, log)
        raise


def _release(config: Config, guest: Guest, writer: EntryWriter, log: Logger) -> None:
    snapshot_match.note(writer, log)
    if writer.entry.frozen:
        _resume_or_thaw(config, guest, writer, log)  # at once: it cannot write to its disks
    with _noting_what_is_in_the_way(guest, writer):
        if writer.entry.dump_may_continue:
            _end_dump(config, guest, writer.entry, log)
            # If it cannot be ended any more, the guest is on overlays after it, or paused.
            jobs.wait_idle(guest, config.limits.busy_timeout_s)
        _resume_or_thaw(config, guest, writer, log)
        _leave_blank_overlays(guest, writer, log)
        chains = _commit_all(config, guest, writer, log)
    _mend_persistent(guest, writer)
    _allow_as_before(guest, writer.entry, log)
    live_commit.prove(guest, _chains_once(guest, writer.entry) | chains)
    if chains or writer.entry.committed_overlays:
        _tell_late_runs(config, guest, late.merge_ended, log)
    _resume_after_merge(guest, writer.entry, was_on_overlay=bool(chains), log=log)
    _put_limits_back(guest, writer.entry)
    writer.step("tidy", lambda: _tidy(config, guest, writer.entry, chains, log))


def _put_limits_back(guest: Guest, entry: Entry) -> None:
    """What QEMU and libvirt allowed themselves before the dump."""
    if not guest.is_active():
        return
    if entry.original_downtime_ms is not None:
        guest.migrate_set_max_downtime_ms(entry.original_downtime_ms)
    if entry.original_speed_mib is not None:
        guest.migrate_set_max_speed_mib(entry.original_speed_mib)


@contextmanager
def _noting_what_is_in_the_way(guest: Guest, writer: EntryWriter) -> Iterator[None]:
    """Note whose work keeps the guest on its overlays, for those who ask why it is there."""
    work = ""
    try:
        yield
    except ZvmsnapError:
        with suppress(ZvmsnapError):
            work = jobs.work_of_others(guest)
        raise
    finally:
        if writer.entry.in_the_way != work:
            with suppress(OSError):  # it only tells a person
                writer.note(in_the_way=work)


def _resume_or_thaw(config: Config, guest: Guest, writer: EntryWriter, log: Logger) -> None:
    if not writer.entry.holds_guest:
        return
    try:
        writer.step("resume or thaw", lambda: resume_or_thaw(config, guest, writer, log))
    except StepFailed as error:
        if isinstance(error.cause, DomainGone):
            raise error.cause from error
        raise


def _let_go(guest: Guest, entry: Entry, log: Logger) -> None:
    """Resume or thaw the guest without a note, as after a full journal; its point is `crash` then.

    An entry that says held, of a guest that goes on, never makes a point of a better level.
    """
    if not entry.is_held:
        return
    try:
        was = resume_or_thaw_unlocked(guest, entry)
    except DomainGone:
        return
    except ZvmsnapError as error:
        log.error("not resumed or thawed yet: %s", error)
        return
    if was:
        log.warning("was %s, and goes on, though that is not noted", was)


def _end_dump(config: Config, guest: Guest, entry: Entry, log: Logger) -> None:
    """Abort a dump whose caller was killed: nobody bounds it, nor a pause that was to end it.

    Its RAM would be of a later instant than the snapshot.
    """
    image = StagingDir(entry.directory(config.staging_dir)).memory
    if entry.disks_frozen_at_s or not save_image.is_partial(image):
        return
    try:
        if guest.is_active() and guest.is_dumped():
            log.warning("libvirt goes on with the dump of its RAM: aborting it")
            guest.abort_job()
    except DomainGone:
        raise
    except LibvirtFailed as error:
        log.warning("the dump of its RAM is waited for: %s", error)


# -- from the overlays to the bases


def _leave_blank_overlays(guest: Guest, writer: EntryWriter, log: Logger) -> None:
    """Take a guest that is off from overlays of which nothing came to the disk before a power cut.

    Not even a header did, so nothing that the guest wrote did; and it could not be started.
    """
    if guest.is_active():
        return
    named = {disk.target: disk.source for disk in domain_xml.parse(guest.xml()).disks}
    blank = {
        disk.target: (disk.type, disk.base, disk.format)
        for disk in writer.entry.disks
        if disk.overlay
        and disk.base
        and named.get(disk.target) == disk.overlay
        and Path(disk.overlay).is_file()
        and unused_overlay.is_blank(Path(disk.overlay))
    }
    if blank:
        log.warning("its overlays never came to the disk: %s: leaving them", ", ".join(blank))
        writer.step("redefine", lambda: offline_commit.redefine_sources(guest, blank))


def _commit_all(
    config: Config, guest: Guest, writer: EntryWriter, log: Logger
) -> dict[str, OverlayChain]:
    """Merge until no disk of the live definition is on an overlay; returns the chains merged."""
    merged: dict[str, OverlayChain] = {}
    for attempt in range(1, _ATTEMPTS + 1):
        was_active = guest.is_active()
        chains = overlay_chain.of(domain_xml.parse(guest.xml()))
        if not chains:
            break
        merged |= chains
        _tell_late_runs(config, guest, late.merge_begins, log)
        _note_begin(guest, writer, chains)
        release_disk = _releasing(writer, chains)
        try:
            if was_active:
                limit_s = config.limits.commit_timeout_s
                commit = partial(live_commit.to_base, guest, chains, limit_s, release_disk)
                writer.step("commit", commit)
            else:
                log.warning("is off while on its overlays: merging them with qemu-img")
                offline_commit.to_base(guest, chains, release_disk, writer.step)
            break
        except ZvmsnapError:
            if attempt == _ATTEMPTS or guest.is_active() == was_active:
                raise
    return merged


def _tell_late_runs(
    config: Config, guest: Guest, note: Callable[[Path, str], None], log: Logger
) -> None:
    try:
        note(config.journal_dir, guest.uuid)
    except (ZvmsnapError, OSError) as error:
        log.warning("a snapshot of another run may hold disks in the middle of a merge: %s", error)


def _note_begin(guest: Guest, writer: EntryWriter, chains: Mapping[str, OverlayChain]) -> None:
    """Write down, before a merge of these chains begins, what it means for the entry."""
    if writer.entry.snapshots_at_release == ():
        writer.note(released_early=True)
    # Once committed, but still or again in use: what was written since that is not merged.
    still_used = all_overlays(chains)
    committed = writer.entry.committed_overlays
    if still_used & set(committed):
        writer.note(committed_overlays=tuple(path for path in committed if path not in still_used))
    below = {image for chain in chains.values() for image in chain.below}
    if below and writer.entry.denied_below is None:
        writer.note(denied_below=tuple(sorted(apparmor.denied(guest.uuid, below))))


def _releasing(writer: EntryWriter, chains: Mapping[str, OverlayChain]) -> ReleaseDisk:
    """How a disk is taken off its overlays: written down first, as their data is in the base."""

    def release_disk(target: str, do: Callable[[], None]) -> None:
        committed = (*writer.entry.committed_overlays, *chains[target].overlays)
        writer.note(committed_overlays=committed)
        writer.step(f"release {target}", do)

    return release_disk


def _mend_persistent(guest: Guest, writer: EntryWriter) -> None:
    """The next start must not use an overlay that the running guest is not on any more."""
    if not guest.is_active() or not guest.is_persistent():
        return
    live = {disk.target: disk.source for disk in domain_xml.parse(guest.xml()).disks}
    stale = {
        target: chain
        for target, chain in overlay_chain.of(domain_xml.parse(guest.xml(persistent=True))).items()
        if chain.base and live.get(target) == chain.base
    }
    if stale:
        writer.step("redefine", lambda: offline_commit.redefine(guest, stale))


def _allow_as_before(guest: Guest, entry: Entry, log: Logger) -> None:
    """Let the guest write to what is below its bases if it could before: see disks/apparmor.

    Else its user could not commit a snapshot of his own any more.
    """
    if entry.denied_below is None or not guest.is_active():
        return
    below = {image for disk in domain_xml.parse(guest.xml()).disks for image in disk.chain}
    try:
        apparmor.allow_writes(guest.uuid, below - set(entry.denied_below))
    except OSError as error:
        log.warning("its AppArmor profile may deny it what is below its disks: %s", error)


def _chains_once(guest: Guest, entry: Entry) -> dict[str, OverlayChain]:
    """The overlays that no definition may name any more, whatever the bases are by now."""
    planned = {
        disk.target: OverlayChain(disk.target, (disk.overlay,))
        for disk in entry.disks
        if disk.overlay
    }
    named = {
        target: OverlayChain(target, chain.overlays)
        for target, chain in overlay_chain.of_guest(guest).items()
    }
    return planned | named


# -- pauses that are not those of level `paused`


def _resume_after_merge(guest: Guest, entry: Entry, *, was_on_overlay: bool, log: Logger) -> None:
    pause = guest.pause_reason()
    if pause and _is_ours_to_resume(pause, entry, was_on_overlay=was_on_overlay):
        log.warning("is paused because of %s: resuming it", pause.value)
        guest.resume()


def _is_ours_to_resume(pause: Pause, entry: Entry, *, was_on_overlay: bool) -> bool:
    """Decide for a guest that is paused while no job is under way.

    | paused because of | and                                       | resumed |
    |-------------------|-------------------------------------------|---------|
    | an I/O error      | it was on an overlay of zvmsnap (full?)   | yes     |
    | a request         | the entry says that it was zvmsnap's      | yes     |
    | a job that died   | its RAM was being dumped                  | yes     |
    | anything else     |                                           | no      |
    """
    if pause is Pause.IO_ERROR:
        return was_on_overlay
    if pause is Pause.USER:
        return entry.paused
    return pause is Pause.JOB and entry.dump_may_continue


# -- what is left of the overlays


def _tidy(
    config: Config, guest: Guest, entry: Entry, chains: Mapping[str, OverlayChain], log: Logger
) -> None:
    directory = StagingDir(entry.directory(config.staging_dir))
    directory.check()
    _close_in_qemu(guest, log)
    merged = all_overlays(chains)
    _clear_overlays(guest, entry, merged | {str(path) for path in directory.overlays()}, log)
    _remove_lost_captures(config, entry, merged)
    for name in set(guest.snapshot_names()) & set(entry.snapshot_names):
        # Older scripts name libvirt's snapshots as sanoid's. To revert to one of them after this
        # commit would load old RAM over new disks.
        log.warning("forgetting libvirt's snapshot metadata %s", name)
        guest.snapshot_delete_metadata(name)


def _close_in_qemu(guest: Guest, log: Logger) -> None:
    """libvirt was killed in the middle of a snapshot or of a merge, and QEMU has overlays open."""
    try:
        for overlay in unused_overlay.close_in_qemu(guest):
            log.warning("QEMU had %s open, which no disk used: closed", overlay)
    except OverlayHeld as error:
        log.error("%s", error)  # its next points say so, too


def _clear_overlays(guest: Guest, entry: Entry, overlays: set[str], log: Logger) -> None:
    """Delete those whose data is in the base, or that never had any; move all others aside.

    Raises CommitFailed for one that is in use.
    """
    in_use = images_of(guest)
    bases = {disk.overlay: disk.base for disk in entry.disks}
    for overlay in sorted(overlays):
        if overlay in in_use:
            raise CommitFailed(f"{guest.name}: {overlay} is in use again; kept")
        if not os.path.lexists(overlay):
            continue
        merged = overlay in entry.committed_overlays
        moved = unused_overlay.clear(Path(overlay), bases.get(overlay, ""), merged=merged)
        if moved:
            # Somebody has brought its guest back to the base, and need not have merged it.
            log.warning("may hold writes that zvmsnap has not merged: see to %s", moved)


def _remove_lost_captures(config: Config, entry: Entry, merged: set[str]) -> None:
    """Remove the captures of merged overlays that no journal entry names: nobody else does."""
    for path in sorted({Path(overlay).parent for overlay in merged}):
        if path.name == entry.capture or StagingDir(path).overlays():
            continue
        # An entry of another version may name this capture, and need its RAM image.
        if entry.uuid not in other_versions.guests(config.journal_dir):
            StagingDir(path).remove()
