"""Levels `memory` and `paused`: libvirt dumps the RAM of the running guest.

At the end of the dump the guest is on overlays (`memory`), or is paused until the snapshot exists
(`paused`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zvmsnap.capture import expected_pause
from zvmsnap.capture.memory_dump import Dump, DumpSupervisor
from zvmsnap.capture.steps import Attempt
from zvmsnap.common.errors import (
    ConnectionLost,
    DumpAborted,
    LevelRefused,
    LibvirtFailed,
    NotReached,
)
from zvmsnap.common.log import Logger
from zvmsnap.common.process import uptime_s
from zvmsnap.common.steps import Step, StepFailed
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import own_overlays, unused_overlay
from zvmsnap.disks.jobs import wait_idle
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points.manifest import DOMAIN_XML, TPM
from zvmsnap.quiesce import watchdog
from zvmsnap.quiesce.barrier import Stage
from zvmsnap.quiesce.together import ExpectedDump, Pace
from zvmsnap.virt import qemu_conf, save_image, tpm_state
from zvmsnap.virt.connection import REFUSALS
from zvmsnap.virt.guest import Guest

# What a RAM image has besides RAM: video memory, firmware, the state of devices, heads of pages.
_DEVICES_BYTES = 64 << 20


def obstacle(attempt: Attempt) -> str:
    """Why no RAM is dumped any more in this run; "" if it may be."""
    if attempt.shared.is_too_late_to_dump(attempt.guest.uuid):
        return "no RAM is dumped while other guests of this run are held"
    if any(
        isinstance(error, StepFailed) and isinstance(error.cause, DumpAborted)
        for error in attempt.errors
    ):
        return "its RAM could not be written in time"
    if attempt.level is ConsistencyLevel.PAUSED:
        return ""  # it has no overlays, and is paused until its snapshot is taken
    return expected_pause.why_too_long(
        attempt.config.limits.memory_max_pause_s,
        attempt.config.vault_dir,
        attempt.guest.name,
        attempt.guest.uuid,
        len(attempt.eligibility.covered),
    )


def capture(attempt: Attempt) -> None:
    """Raises StepFailed, and LevelRefused and other ZvmsnapErrors before an entry is open."""
    if why := qemu_conf.why_unloadable():
        raise NotReached(why)
    is_paused = attempt.level is ConsistencyLevel.PAUSED
    cancelled = attempt.run.request.cancelled
    wait_idle(attempt.guest, attempt.config.limits.busy_timeout_s, cancelled)
    attempt.guest.check_answers()
    unused_overlay.close_in_qemu(attempt.guest)
    owner = None if is_paused else own_overlays.owner_for(attempt.guest.xml())
    attempt.shared.reserve(attempt.guest.uuid, _room_bytes(attempt))
    if is_paused:
        _join_others(attempt)
    writer = attempt.open_entry(overlays=not is_paused)
    read_header = [Step("read header", lambda: writer.note(**_of_header(attempt, writer)))]
    steps = [
        *attempt.preparation(writer),
        Step("dump", lambda: _dump(attempt, writer, owner), lambda: attempt.release(writer)),
        # A guest that is paused waits for each line that is written: one is all.
        *([] if is_paused else read_header),
        Step("frozen", lambda: None),
    ]
    attempt.run_steps(steps, writer)
    attempt.log.info(
        "RAM image of %d MiB in %.1f s, guest %s",
        attempt.staging.memory.stat().st_size >> 20,
        writer.entry.dump_s,
        "is paused now" if is_paused else f"was paused for {writer.entry.pause_s:.2f} s",
    )


def _join_others(attempt: Attempt) -> None:
    """Wait until all guests that are to be paused can be dumped together. Raises LevelRefused."""
    uuid, together = attempt.guest.uuid, attempt.shared.together
    together.expect(uuid, _expected(attempt))
    attempt.shared.barrier.enter(uuid, Stage.CHOICE, attempt.run.request.cancelled)
    if why_not := together.why_not(uuid):
        raise LevelRefused(why_not)
    attempt.enter(Stage.PAUSE)


def _expected(attempt: Attempt) -> ExpectedDump:
    """QEMU writes no page that the guest has never used."""
    ram_bytes = attempt.eligibility.domain.memory_kib << 10
    process = attempt.guest.process()
    used_bytes = min(ram_bytes, (process and process.memory_bytes()) or ram_bytes)
    if len(attempt.shared.barrier) <= attempt.shared.together.at_once:
        return ExpectedDump(used_bytes, 0.0)  # nobody waits for it: the vault is not asked
    bytes_per_s = expected_pause.dump_bytes_per_s(
        attempt.config.vault_dir, attempt.guest.name, attempt.guest.uuid
    )
    return ExpectedDump(used_bytes, used_bytes / bytes_per_s)


def _room_bytes(attempt: Attempt) -> int:
    """What is reserved for the RAM image, which is aborted before it becomes larger."""
    ram_bytes = attempt.eligibility.domain.memory_kib << 10
    return int(ram_bytes * attempt.config.limits.dump_max_ram_ratio) + _DEVICES_BYTES


class _DumpJournal:
    """Writes down what the supervisor of a dump does, before it does it."""

    def __init__(self, writer: EntryWriter, log: Logger) -> None:
        self._writer = writer
        self._log = log

    def changes_downtime(self, original_ms: int) -> None:
        self._writer.note(original_downtime_ms=original_ms)

    def changes_speed(self, original_mib_per_s: int) -> None:
        self._writer.note(original_speed_mib=original_mib_per_s)

    def restored(self) -> None:
        self._writer.note(original_downtime_ms=None, original_speed_mib=None)

    def pauses(self) -> None:
        self._writer.note(paused=True)

    def warns(self, message: str) -> None:
        self._log.warning("%s", message)


def _dump(attempt: Attempt, writer: EntryWriter, owner: tuple[int, int] | None) -> None:
    guest = attempt.guest
    stays_paused = attempt.level is ConsistencyLevel.PAUSED
    xml = attempt.snapshot_xml(writer, str(attempt.staging.memory))
    with _turn(attempt) as pace, guest.pauses() as clock:
        if not stays_paused:
            # Not while it waits for its turn: a disk may be made larger, before libvirt is at it.
            own_overlays.make(attempt.below_overlays(writer), owner)
        writer.note(paused=stays_paused)
        limits, cancelled = attempt.config.limits, attempt.run.request.cancelled
        if stays_paused:
            watchdog.wait_until_followed(attempt.config, writer.entry, cancelled)
        begun_s = time.monotonic()
        overlays = tuple(Path(disk.overlay) for disk in writer.entry.disks if disk.overlay)
        dump = Dump(attempt.staging.memory, _room_bytes(attempt), stays_paused, overlays, pace)
        journal = _DumpJournal(writer, attempt.log)
        supervisor = DumpSupervisor(guest, dump, limits, journal, cancelled)
        try:
            with supervisor:
                _snapshot(guest, xml, reuse_overlays=not stays_paused)
        except DumpAborted as error:
            raise DumpAborted(supervisor.why_aborted or str(error)) from error
        except LibvirtFailed as error:
            if _is_refused(attempt, error):
                raise LevelRefused(str(error)) from error
            raise
        ended_s = time.monotonic()
        held_since_s = uptime_s() - (ended_s - clock.paused_since_s()) if stays_paused else 0.0
        at_once = {"step": "frozen", **_of_header(attempt, writer)} if stays_paused else {}
        writer.note(
            # A pause that came just after the dump, and could not be ended: release resumes it.
            paused=stays_paused or (writer.entry.paused and bool(guest.pause_reason())),
            disks_frozen_at_s=time.time(),
            held_since_s=held_since_s,
            dump_s=ended_s - begun_s,
            last_ram_s=clock.last_ram_s,
            pause_s=0.0 if stays_paused else clock.total_s(),
            pause_parts=supervisor.pause_parts(clock),
            **attempt.snapshots_before_freeze(writer.entry),
            **at_once,
        )


@contextmanager
def _turn(attempt: Attempt) -> Iterator[Pace | None]:
    """Hold a place among those that are dumped; how it goes on beside others that are paused."""
    uuid, cancelled = attempt.guest.uuid, attempt.run.request.cancelled
    if attempt.level is ConsistencyLevel.PAUSED:
        with attempt.shared.together.dump(uuid, attempt.staging.memory, cancelled) as pace:
            yield pace
    else:
        with attempt.shared.barrier.dump(uuid, cancelled):
            yield None


def _snapshot(guest: Guest, xml: str, *, reuse_overlays: bool) -> None:
    try:
        guest.snapshot_create(xml, reuse_overlays=reuse_overlays)
    except ConnectionLost:
        # libvirt goes on with the dump, but nobody would watch it, nor end a pause.
        with suppress(LibvirtFailed):
            guest.abort_job()
        raise


def _is_refused(attempt: Attempt, error: LibvirtFailed) -> bool:
    """Will it be so at every snapshot, as for a device that only QEMU knows not to be migratable?

    Such a call is refused before libvirt has made the image. A job of somebody else ends.
    """
    guest = attempt.guest
    return (
        error.code in REFUSALS
        and not attempt.staging.memory.exists()
        and guest.is_active()
        and not any(guest.has_block_job(target) for target in attempt.eligibility.covered)
    )


def _of_header(attempt: Attempt, writer: EntryWriter) -> dict[str, Any]:
    """Changes of the entry: will libvirt load the image? Does the TPM's stored state still hold?

    Raises ImageUnloadable.
    """
    point = attempt.staging.point
    xml = (point / DOMAIN_XML).read_text(encoding="utf-8")
    stale = tpm_state.why_stale(xml, attempt.guest.uuid, point / TPM)
    why = dict.fromkeys(filter(None, (writer.entry.tpm_warning, stale)))
    return {
        "memory_format": save_image.read_header(attempt.staging.memory).format,
        "tpm_warning": "; ".join(why) or None,
    }
