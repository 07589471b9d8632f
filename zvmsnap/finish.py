"""post: bring each guest back to its bases, and publish its point.

Works from the journal, for sanoid tells post neither whether the snapshot worked nor, always, its
real name. Everything here may be repeated after a crash, by the next hook for the guest:

    commit     every overlay back into its base, proven by the XML
    tidy       overlay files, left-over snapshot metadata of libvirt
    publish    a point that names exactly the snapshots that ZFS has, or nothing if it has none
    close      staging directory and journal entry go
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from zvmsnap import blockcommit, domainxml, log, point, vault, zfs
from zvmsnap.config import Config
from zvmsnap.errors import DomainBusy, DomainGone, SnapshotMissing, ZvmsnapError
from zvmsnap.files import write_atomic
from zvmsnap.hypervisor import Guest, Hypervisor
from zvmsnap.journal import Entry, Journal, Process
from zvmsnap.locks import lock
from zvmsnap.placement import Level
from zvmsnap.point import Host, Manifest, Memory, Tie, Timing
from zvmsnap.sanoid import HookCall, spellings
from zvmsnap.staging import CaptureDir, overlays_of

_PARALLEL_GUESTS = 16


def finish(call: HookCall, config: Config, owner: Process) -> bool:
    """Finish the moment of this call for every guest in the journal; True if all went well.

    First all guests leave their overlays, in parallel; only then images are moved, one by one.
    """
    journal = Journal(config.journal_dir)
    entries = [entry for entry in journal.entries() if belongs(entry, call, owner)]
    if not entries:
        log.plain().debug("%s: nothing was begun here", ",".join(call.datasets))
        return True
    with (
        Hypervisor(config.uri) as hypervisor,
        ThreadPoolExecutor(min(_PARALLEL_GUESTS, len(entries))) as pool,
    ):
        finishing = [_Finish(config, hypervisor, journal, entry, call.names) for entry in entries]
        committed = list(pool.map(lambda each: each.guarded(each.leave_overlays), finishing))
        published = [
            ok and each.guarded(each.publish) for each, ok in zip(finishing, committed, strict=True)
        ]
    return all(published)


def belongs(entry: Entry, call: HookCall, owner: Process) -> bool:
    """Is that entry of the moment that this post ends?

    Same datasets, and the same sanoid (strictly serial: pre, snapshot, post). Where each hook has
    a shell of its own between it and sanoid, a name in common must do; but never for the moment of
    a process that still runs: of two sanoids that began in the same second, with the same names,
    the other one has not taken its snapshots yet.
    """
    if entry.targets != call.datasets:
        return False
    announced = {spelling for name in entry.names for spelling in spellings(name)}
    return entry.owner == owner or (
        bool(announced & set(call.names)) and not entry.owner.is_alive()
    )


def settle(config: Config, hypervisor: Hypervisor, guest: Guest, entry: Entry | None) -> None:
    """End what an earlier moment left open for this guest, whose lock the caller holds.

    Without a journal entry the overlays' names and the backing chain in the XML are enough.
    Raises CommitFailed and others if it cannot be ended; nothing is lost then.
    """
    if entry:
        done = _Finish(config, hypervisor, Journal(config.journal_dir), entry, entry.names)
        log.about(guest.name, ",".join(entry.targets)).warning(
            "finishing moment %s, which nobody finished", entry.moment
        )
        done.leave_overlays_locked()
        try:
            done.publish_locked()
        except SnapshotMissing:
            return
    else:
        overlays = overlays_of(domainxml.parse(guest.xml()))
        if overlays:
            log.about(guest.name, "no journal").warning("leaving overlays that no journal knows")
            blockcommit.to_base(guest, overlays, config.limits.commit_timeout_s)
            for overlay, _ in overlays.values():
                Path(overlay).unlink(missing_ok=True)


class _Finish:
    """One guest's entry, on its way out of the journal."""

    def __init__(
        self,
        config: Config,
        hypervisor: Hypervisor,
        journal: Journal,
        entry: Entry,
        names: tuple[str, ...],
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._journal = journal
        self._entry = entry
        self._names = names
        self._dir = CaptureDir(config.staging_dir / entry.capture)
        self._log = log.about(entry.domain, ",".join(entry.targets))
        self._commit_s = 0.0
        self._overlay_s = 0.0

    def guarded(self, work: Callable[[], None]) -> bool:
        """Do `work`; False, with the cause in the log, if it failed."""
        try:
            work()
            return True
        except (ZvmsnapError, OSError) as error:
            self._log.error("%s", error)
            return False

    def leave_overlays(self) -> None:
        """Commit and tidy under the guest's lock."""
        with self._lock("commit"):
            if self._is_ours():
                self.leave_overlays_locked()

    def publish(self) -> None:
        """Publish and close under the guest's lock."""
        with self._lock("publish"):
            if self._is_ours():
                self.publish_locked()

    def _is_ours(self) -> bool:
        """Is this moment still open, or has another hook finished it while we waited?"""
        now = self._journal.read(self._entry.uuid)
        if now is None or now.capture != self._entry.capture:
            self._log.warning("moment %s was finished by another hook", self._entry.moment)
            return False
        return True

    def leave_overlays_locked(self) -> None:
        """commit, tidy."""
        overlays = {d.target: (d.overlay, d.base) for d in self._entry.disks if d.overlay}
        guest = self._guest()
        if guest and guest.is_active() and guest.has_job():
            # libvirt completes a dump whose caller was killed, and only then makes the overlays.
            raise DomainBusy("a job (dump, migration, backup) is under way; the next hook goes on")
        if overlays and guest:
            self._record("commit")
            begun_s = time.monotonic()
            blockcommit.to_base(
                guest, overlays, self._config.limits.commit_timeout_s, self._pivoted
            )
            self._commit_s = time.monotonic() - begun_s
            if self._entry.frozen_at_s:
                self._overlay_s = time.time() - self._entry.frozen_at_s
        self._record("tidy")
        if guest:
            self._remove_overlays()
            self._forget_metadata(guest)

    def _pivoted(self, target: str) -> None:
        self._entry = msgspec.structs.replace(
            self._entry, committed=(*self._entry.committed, target)
        )
        self._record("commit")

    def _remove_overlays(self) -> None:
        for disk in self._entry.disks:
            overlay = Path(disk.overlay)
            if not disk.overlay or not overlay.exists():
                continue
            if disk.target in self._entry.committed:
                overlay.unlink()
            else:
                # Its guest was brought back to the base by somebody who need not have merged it.
                self._log.warning("%s was not merged by us and is kept: see to it", overlay)

    def publish_locked(self) -> None:
        """publish, close. Raises SnapshotMissing, after closing, if ZFS has no snapshot of it."""
        self._record("publish")
        ties = self._ties()
        vault_dir, entry = self._config.vault_dir, self._entry
        if not ties:
            self._close()
            raise SnapshotMissing(
                f"none of {', '.join(self._names)} exists: the RAM image is discarded; "
                "what kept sanoid from taking the snapshot stands in its own log"
            )
        if vault.published(vault_dir, entry.domain, entry.capture):
            self._log.debug("was published already")
        elif not (self._dir.point / point.DOMAIN_XML).exists():
            self._log.warning("no point: pre was killed before it had stored anything")
        else:
            published = self._publish(ties)
            manifest = published.manifest
            self._log.info(
                "point %s: level %s%s", published.name, manifest.level, self._measured(manifest)
            )
        self._close()

    def _lock(self, intent: str) -> AbstractContextManager[None]:
        config = self._config
        return lock(
            config.locks_dir,
            self._entry.uuid,
            f"{intent} {self._entry.domain}",
            config.limits.lock_timeout_s,
        )

    def _record(self, step: str) -> None:
        self._journal.write(msgspec.structs.replace(self._entry, step=step))

    def _guest(self) -> Guest | None:
        try:
            return self._hypervisor.guest(self._entry.uuid)
        except DomainGone:
            self._log.warning(
                "the guest does not exist any more; its overlays are kept in %s", self._dir.path
            )
            return None

    def _forget_metadata(self, guest: Guest) -> None:
        # Older scripts name libvirt's snapshots as sanoid's; reverting to such a one after our
        # commit would load old RAM over new disks.
        for name in set(guest.snapshot_names()) & set(self._names):
            self._log.warning("forgetting libvirt's snapshot metadata %s", name)
            guest.snapshot_delete_metadata(name)

    def _ties(self) -> tuple[Tie, ...]:
        candidates = {
            f"{dataset}@{spelling}"
            for dataset in self._entry.datasets
            for name in (*self._names, *self._entry.names)
            for spelling in spellings(name)
        }
        found = zfs.snapshots(candidates).present.values()
        return tuple(
            Tie(snapshot.dataset, snapshot.name, snapshot.guid, snapshot.createtxg)
            for snapshot in sorted(found)
            if snapshot.guid not in self._entry.former_guids
        )

    def _publish(self, ties: tuple[Tie, ...]) -> point.Point:
        entry = self._entry
        incoming = vault.incoming(self._config.vault_dir, entry.domain, entry.capture)
        memory = None
        if entry.level is Level.MEMORY and entry.frozen_at_s:
            memory = self._stow(incoming)
        elif entry.level is Level.MEMORY:
            # The image may be complete, but it is of a later instant than the snapshot.
            entry = msgspec.structs.replace(
                entry, level=Level.CRASH, reason="pre was killed before the disks were frozen"
            )
        for name in (point.DOMAIN_XML, point.PERSISTENT_XML, point.NVRAM):
            source = self._dir.point / name
            if source.exists():
                write_atomic(incoming / name, source.read_bytes())
        manifest = Manifest(
            domain=entry.domain,
            uuid=entry.uuid,
            moment=entry.moment,
            taken=entry.taken,
            capture=entry.capture,
            level=entry.level,
            reason=entry.reason,
            snapshots=ties,
            disks=tuple(
                point.Disk(d.target, d.type, d.format, d.base, d.dataset, d.path)
                for d in entry.disks
            ),
            memory=memory,
            host=self._host(incoming / point.DOMAIN_XML),
            timing=Timing(entry.pause_s, entry.dump_s, self._overlay_s, self._commit_s),
        )
        return vault.publish(incoming, manifest)

    def _stow(self, incoming: Path) -> Memory:
        plain = self._config.image.compression == "none" or (
            self._config.image.compression == "auto"
            and (
                incoming.stat().st_dev == self._dir.point.stat().st_dev
                or self._is_compressed_already()
            )
        )
        level = None if plain else self._config.image.zstd_level
        return vault.stow_memory(
            self._dir.memory, incoming, self._entry.memory_format, zstd_level=level
        )

    def _is_compressed_already(self) -> bool:
        if self._entry.memory_format != "raw":
            return True
        found = zfs.dataset_of_path(str(self._config.vault_dir.resolve()), zfs.mounts())
        return found is not None and zfs.datasets()[found[0]].compressed

    def _host(self, definition: Path) -> Host:
        domain = domainxml.parse(definition.read_text())
        return Host(
            **self._hypervisor.versions(),
            machine=domain.machine,
            arch=domain.arch,
            emulator=domain.emulator,
            cpu_mode=domain.cpu_mode,
            cpu_model=domain.cpu_model,
        )

    def _measured(self, manifest: Manifest) -> str:
        if not manifest.memory:
            return ""
        return (
            f", {manifest.memory.stored_bytes >> 20} MiB of RAM stored, "
            f"on its overlay for {self._overlay_s:.1f} s"
        )

    def _close(self) -> None:
        self._record("close")
        if not self._dir.overlays():
            self._dir.remove()
        self._journal.close(self._entry)
