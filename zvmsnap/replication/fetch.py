"""Fetches a point from a destination, with its datasets, to a host that has nothing of it.

    note       the journal says what is fetched, and which datasets are made for it
    small      copy definition, NVRAM and TPM state; check that the guest can run on this host
    datasets   syncoid receives them, with all their snapshots, under the names that they had
    memory     copy the RAM image, and compare its checksum
    small      once more
    publish    the point appears in the vault of this host, and the note is removed

After that it is restored like any other point. While there is the note, the same command goes on
with the fetch, never overwrites any other dataset, and nobody removes what has been fetched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.errors import FetchRefused, ImageUnloadable
from zvmsnap.common.lockfile import lock
from zvmsnap.common.safe_files import private_dir
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.journal.fetches import Fetches, UnfinishedFetch
from zvmsnap.points import (
    compatibility,
    definition,
    locate,
    memory_image,
    selector,
    vault,
)
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.next_start import mountpoints_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import syncoid, transfer
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.syncoid import SyncoidOptions
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot


@dataclass(frozen=True)
class FetchPlan:
    """The point at the source, and its snapshots there, by the dataset on this host."""

    point: RestorePoint
    snapshots: Mapping[str, Snapshot]
    lines: tuple[str, ...]


class Fetcher:
    """Fetches from one source."""

    def __init__(
        self,
        settings: Config,
        host: Host,
        source: Destination,
        options: SyncoidOptions,
        *,
        trust: bool = False,
        identity: str = "",
    ) -> None:
        self._settings = settings
        self._host = host
        self._source = source
        self._options = options
        self._trust = trust
        self._identity = identity
        self._remote = RemoteHost(source.host, settings.locks_dir)
        self._fetches = Fetches(settings.journal_dir)
        self._remote_vault = RemoteVault.of(settings, source, self._remote)

    def plan(self, text: str) -> FetchPlan:
        """Choose the point, and check that nothing on this host is in its way. Changes nothing.

        Raises PointNotFound, SnapshotMissing, FetchRefused and EncryptionFailed.
        """
        syncoid.check(self._options)
        remote_points, _ = self._remote_vault.read()
        point = selector.choose(remote_points, text)
        compatibility.refuse_unidentified(point, FetchRefused)
        subtree = zfs.subtree(self._source.root, self._remote)
        snapshots = locate.snapshots_of(point, Liveness.below(self._source.root, subtree))
        self._check_free(point, snapshots)
        point, reached = self._look(point)
        lines = (*self._lines(point, snapshots), *compatibility.trusted(reached))
        return FetchPlan(point, snapshots, lines)

    def _look(self, point: RestorePoint) -> tuple[RestorePoint, list[str]]:
        """The point with its whole manifest, and what its definitions reach of this host.

        Raises FetchRefused if that is not trusted, and EncryptionFailed.
        """
        with tempfile.TemporaryDirectory() as temporary:
            directory = private_dir(Path(temporary) / "domain" / "run")
            manifest = self._remote_vault.get_small(point, directory, self._identity)
            point = RestorePoint(point.directory, manifest)
            return point, self._judge(RestorePoint(directory, manifest), point)

    def fetch(self, plan: FetchPlan) -> RestorePoint:
        """Fetch everything, and return the point in the vault of this host.

        Raises FetchRefused, SyncoidFailed, RemoteFailed, ImageUnloadable, EncryptionFailed and
        VaultMissing.
        """
        manifest = plan.point.manifest
        timeout_s = self._settings.limits.lock_timeout_s
        intent = f"fetch {plan.point.name}"
        with lock(self._settings.locks_dir, manifest.uuid, intent, timeout_s):
            self._check_free(plan.point, plan.snapshots)
            vault.claim(self._settings)
            vault_dir = self._settings.vault_dir
            published = vault.published(vault_dir, manifest.domain, manifest.run, manifest.capture)
            # Noted before anything of it is in the vault: `prune` would remove it.
            self._begin(plan)
            for dataset, snapshot in sorted(plan.snapshots.items()):
                self._receive(dataset, snapshot)
            if published is None:
                published = self._publish(plan)
            else:
                vault.drop_incoming(self._incoming(manifest))
            self._fetches.close(manifest.uuid)
            return published

    def _begin(self, plan: FetchPlan) -> None:
        """Note the fetch, and check that the guest can run here before anything large is fetched.

        Raises FetchRefused, with nothing left, if it cannot.
        """
        manifest = plan.point.manifest
        goes_on = self._read_unfinished(manifest.uuid) is not None
        datasets = tuple(sorted(plan.snapshots))
        fetch = UnfinishedFetch(self._source.name, plan.point.name, datasets)
        self._fetches.write(manifest.uuid, fetch)
        try:
            self._get_small(plan.point)
        except FetchRefused:
            if not goes_on:
                vault.drop_incoming(self._incoming(manifest))
                self._fetches.close(manifest.uuid)
            raise

    def _incoming(self, manifest: Manifest) -> Path:
        return vault.incoming(self._settings.vault_dir, manifest.domain, manifest.capture)

    def _get_small(self, point: RestorePoint) -> None:
        incoming = self._incoming(point.manifest)
        self._remote_vault.get_small(point, incoming, self._identity)
        copied = RestorePoint(incoming, point.manifest)
        self._check_fits(copied)
        self._judge(copied, point)

    def _publish(self, plan: FetchPlan) -> RestorePoint:
        manifest = plan.point.manifest
        incoming = self._incoming(manifest)
        base = self._base(manifest)
        self._remote_vault.get_memory(plan.point, incoming, base, self._identity)
        self._check_memory(incoming, manifest)
        # Once more: hours have passed, and a point is complete when it appears.
        self._get_small(plan.point)
        received = zfs.snapshot_usage(sorted(plan.snapshots))
        refs = _refs(manifest, [usage.snapshot for usage in received])
        datasets, pools = zfs.lineages(), zfs.pool_guids()
        refs = tuple(ref.identified(datasets, pools) for ref in refs)
        fetched = msgspec.structs.replace(manifest, snapshots=refs, encrypted=False)
        return vault.publish(incoming, fetched)

    def _base(self, manifest: Manifest) -> RestorePoint | None:
        """The newest point of the guest with a page image on this host."""
        points, _ = vault.read(self._settings)
        return transfer.newest_pages(points, manifest.uuid)

    def _check_memory(self, incoming: Path, manifest: Manifest) -> None:
        if memory := manifest.memory:
            log.about(manifest.domain, "fetch").info("comparing the checksum of its RAM image")
            try:
                memory_image.check(incoming / memory.file, memory)
            except ImageUnloadable:
                # The next run must not take it for one that has arrived.
                for name in memory.files:
                    (incoming / name).unlink(missing_ok=True)
                raise

    def _check_free(self, point: RestorePoint, snapshots: Mapping[str, Snapshot]) -> None:
        """Raises FetchRefused if guest or datasets of the point exist on this host."""
        self._check_no_guest(point.manifest)
        unfinished = self._read_unfinished(point.manifest.uuid)
        is_ours = unfinished is not None and unfinished.source == self._source.name
        ours = unfinished.datasets if unfinished and is_ours else ()
        existing = zfs.datasets()
        pools = {name for name in existing if "/" not in name}
        for dataset in snapshots:
            pool = dataset.partition("/")[0]
            if pool not in pools:
                raise FetchRefused(f"{dataset}: this host has no pool {pool}: import or create it")
            if dataset in existing and dataset not in ours:
                raise FetchRefused(
                    f"{dataset}: exists on this host, and is not overwritten: zfs rename it, or "
                    "zvmsnap restore a point of it"
                )

    def _check_no_guest(self, manifest: Manifest) -> None:
        for guest in self._host.guests():
            if guest.uuid == manifest.uuid and guest.is_active():
                raise FetchRefused(f"{guest.name}: runs here; use zvmsnap restore")
            if (guest.name == manifest.domain) != (guest.uuid == manifest.uuid):
                raise FetchRefused(
                    f"{guest.name}: a guest of this host has only its name, or only its UUID: "
                    "virsh domrename one, or undefine it"
                )

    def _check_fits(self, point: RestorePoint) -> None:
        memory = point.manifest.memory is not None
        xml = definition.definition_of(point, live=memory)
        coming = [mountpoint for _, mountpoint in mountpoints_of(point.manifest)]
        made_on = point.manifest.host
        reasons = compatibility.why_not(self._host, xml, made_on, cold=not memory, made=coming)
        compatibility.refuse_misfits(point, reasons, FetchRefused)

    def _judge(self, copied: RestorePoint, point: RestorePoint) -> list[str]:
        if definition.is_made_here(self._settings, copied.directory, point.manifest):
            return []
        definitions = {definition.definition_of(copied, live=live) for live in (False, True)}
        reached = compatibility.reached(self._host, copied, definitions)
        if not self._trust:
            where = self._remote_vault.where(point)
            compatibility.refuse_beyond(point, reached, FetchRefused, where)
        return reached

    def _lines(self, point: RestorePoint, snapshots: Mapping[str, Snapshot]) -> list[str]:
        memory = point.manifest.memory
        return [
            f"fetch {point.name} from {self._source.name}:",
            *(f"  {dataset} from {each.full_name}" for dataset, each in sorted(snapshots.items())),
            f"  its RAM, {memory.stored_bytes >> 20} MiB" if memory else "  without RAM: it boots",
            f"  then {point.manifest.domain} is restored from it",
        ]

    def _receive(self, dataset: str, snapshot: Snapshot) -> None:
        existing = zfs.datasets()
        for parent in reversed(PurePosixPath(dataset).parents):
            if str(parent) != "." and str(parent) not in existing:
                zfs.create(str(parent))
        properties = zfs.properties(snapshot.dataset, ("encryption",), self._remote)
        raw = properties["encryption"] not in ("", "off")
        options = SyncoidOptions(raw=raw, bwlimit=self._options.bwlimit)
        log.about(dataset, "fetch").info("from %s", self._source.at(snapshot.dataset))
        syncoid.run(self._source.at(snapshot.dataset), dataset, options, readonly=False)
        received = zfs.datasets()[dataset]
        if received.locked:
            raise FetchRefused(
                f"{dataset}: was received, but its key is not loaded: zfs load-key {dataset}, and "
                "the same command again"
            )
        if received.type == "filesystem" and not received.mounted:
            zfs.mount(dataset)

    def _read_unfinished(self, uuid: str) -> UnfinishedFetch | None:
        try:
            return self._fetches.read(uuid)
        except json_file.Unreadable as error:
            raise FetchRefused(f"{error}: remove it") from error


def _refs(manifest: Manifest, received: Sequence[Snapshot]) -> tuple[SnapshotRef, ...]:
    """References to the snapshots that have arrived, under the names of this host's datasets."""
    by_guid = {snapshot.guid: snapshot for snapshot in received}
    return tuple(
        SnapshotRef.of(by_guid[ref.guid], ref.dataset)
        for ref in manifest.snapshots
        if ref.guid in by_guid
    )
