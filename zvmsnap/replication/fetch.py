"""A point comes home from a destination, with its datasets, to a host that has nothing of it.

    small      definition, NVRAM and TPM, beside the vault's points; does the machine fit this host?
    datasets   syncoid brings them, with all their snapshots, to the names that they had
    memory     the RAM image, compared with its checksum
    publish    the point appears in the vault here

Then it is restored like any other. What was begun is written down, so that the same command goes on
with it, and no dataset that was there before is ever taken for one that this has brought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from zvmsnap.common import log
from zvmsnap.common.atomic_file import private_dir, sync_dir, write_atomic
from zvmsnap.common.errors import FetchRefused, ImageUnloadable
from zvmsnap.common.lockfile import lock
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.points import compatibility, definition, locate, memory_image, selector, vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import remote_vault, syncoid
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.syncoid import Options
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot

_FOLDER = "fetches"


class UnfinishedFetch(msgspec.Struct, frozen=True):
    """A fetch that was begun: its datasets were not there before."""

    source: str
    point: str
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class FetchPlan:
    """The point as it lies there, and the snapshots there by dataset here."""

    point: RestorePoint
    snapshots: Mapping[str, Snapshot]
    lines: tuple[str, ...]


class Fetch:
    """One point from one source."""

    def __init__(
        self, config: Config, hypervisor: Host, source: Destination, options: Options
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._source = source
        self._options = options
        self._far = RemoteHost(source.host, config.locks_dir)
        place = remote_vault.place_of(source, self._far)
        self._vault = RemoteVault(config, source, self._far, place)

    def plan(self, text: str) -> FetchPlan:
        """Find the point, and see that nothing here is in its way. Nothing is touched.

        Raises PointNotFound, SnapshotMissing and FetchRefused.
        """
        syncoid.check(self._options)
        there, _ = self._vault.read()
        found = selector.choose(there, text)
        snapshots = locate.of(found, zfs.subtree(self._source.root, self._far).snapshots)
        self._check_free(found, snapshots)
        return FetchPlan(found, snapshots, tuple(self._lines(found, snapshots)))

    def run(self, plan: FetchPlan) -> RestorePoint:
        """Bring everything here; returns the point in the vault here.

        Raises FetchRefused, SyncoidFailed, RemoteFailed, ImageUnloadable, VaultMissing.
        """
        manifest = plan.point.manifest
        timeout_s = self._config.limits.lock_timeout_s
        with lock(self._config.locks_dir, manifest.uuid, f"fetch {plan.point.name}", timeout_s):
            self._check_free(plan.point, plan.snapshots)
            vault.claim(self._config)
            vault_dir = self._config.vault_dir
            known = vault.published(vault_dir, manifest.domain, manifest.capture)
            directory = vault.incoming(vault_dir, manifest.domain, manifest.capture)
            self._vault.get_small(plan.point, directory)
            self._check_fits(RestorePoint(directory, manifest))
            self._begin(plan)
            for dataset, snapshot in sorted(plan.snapshots.items()):
                self._receive(dataset, snapshot)
            if known is None:
                self._vault.get_memory(plan.point, directory)
                self._check_memory(directory, manifest)
                known = vault.publish(directory, _as_here(manifest, self._own(plan)))
            else:
                vault.drop_incoming(directory)
            self._path(manifest.uuid).unlink(missing_ok=True)
            return known

    def _check_memory(self, directory: Path, manifest: Manifest) -> None:
        if memory := manifest.memory:
            log.about(manifest.domain, "fetch").info("comparing its RAM image")
            try:
                memory_image.check(directory / memory.file, memory)
            except ImageUnloadable:
                # The next run must not take it for one that has arrived.
                (directory / memory.file).unlink(missing_ok=True)
                raise

    def _check_free(self, found: RestorePoint, snapshots: Mapping[str, Snapshot]) -> None:
        manifest = found.manifest
        for guest in self._hypervisor.guests():
            if guest.uuid == manifest.uuid and guest.is_active():
                raise FetchRefused(f"{guest.name}: runs here; zvmsnap restore is what you want")
            if (guest.name == manifest.domain) != (guest.uuid == manifest.uuid):
                raise FetchRefused(
                    f"{guest.name}: a guest here has only its name, or only its UUID: virsh "
                    "domrename one, or undefine it"
                )
        begun = self._begun(manifest.uuid)
        ours = begun.datasets if begun and begun.source == self._source.name else ()
        there = zfs.datasets()
        pools = {name for name in there if "/" not in name}
        for dataset in snapshots:
            pool = dataset.partition("/")[0]
            if pool not in pools:
                raise FetchRefused(f"{dataset}: there is no pool {pool} here: import or create it")
            if dataset in there and dataset not in ours:
                raise FetchRefused(
                    f"{dataset}: is here already, and is not overwritten: zfs rename it, or "
                    "zvmsnap restore a point of it"
                )

    def _check_fits(self, found: RestorePoint) -> None:
        memory = found.manifest.memory is not None
        xml = definition.definition_of(found, live=memory)
        reasons = compatibility.why_not(self._hypervisor, xml, found.manifest.host, cold=not memory)
        if reasons:
            raise FetchRefused(f"{found.name} does not fit this host: {'; '.join(reasons)}")

    def _lines(self, found: RestorePoint, snapshots: Mapping[str, Snapshot]) -> list[str]:
        memory = found.manifest.memory
        return [
            f"fetch {found.name} from {self._source.name}:",
            *(f"  {dataset} from {each.full_name}" for dataset, each in sorted(snapshots.items())),
            f"  its RAM, {memory.stored_bytes >> 20} MiB" if memory else "  without RAM: it boots",
            f"  then {found.manifest.domain} is restored from it",
        ]

    def _receive(self, dataset: str, snapshot: Snapshot) -> None:
        here = zfs.datasets()
        for parent in reversed(PurePosixPath(dataset).parents):
            if str(parent) != "." and str(parent) not in here:
                zfs.create(str(parent))
        there = zfs.properties(snapshot.dataset, ("encryption",), self._far)
        raw = there["encryption"] not in ("", "off")
        options = Options(raw=raw, bwlimit=self._options.bwlimit)
        log.about(dataset, "fetch").info("from %s", self._source.at(snapshot.dataset))
        syncoid.run(self._source.at(snapshot.dataset), dataset, options, readonly=False)
        own = zfs.datasets()[dataset]
        if own.locked:
            raise FetchRefused(
                f"{dataset}: is here, but its key is not: zfs load-key {dataset}, then the same "
                "command again"
            )
        if own.type == "filesystem" and not own.mounted:
            zfs.mount(dataset)

    def _own(self, plan: FetchPlan) -> dict[int, Snapshot]:
        return {
            use.snapshot.guid: use.snapshot for use in zfs.snapshot_usage(sorted(plan.snapshots))
        }

    def _begin(self, plan: FetchPlan) -> None:
        path = self._path(plan.point.manifest.uuid)
        private_dir(path.parent)
        begun = UnfinishedFetch(self._source.name, plan.point.name, tuple(sorted(plan.snapshots)))
        write_atomic(path, msgspec.json.format(msgspec.json.encode(begun)))
        sync_dir(path.parent)

    def _begun(self, uuid: str) -> UnfinishedFetch | None:
        try:
            return msgspec.json.decode(self._path(uuid).read_bytes(), type=UnfinishedFetch)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise FetchRefused(f"{self._path(uuid)}: {error}: remove it") from error

    def _path(self, uuid: str) -> Path:
        return self._config.journal_dir / _FOLDER / f"{uuid}.json"


def _as_here(manifest: Manifest, own: Mapping[int, Snapshot]) -> Manifest:
    """Tied to the snapshots that have come, under the names of the datasets here."""
    ties = tuple(
        SnapshotRef.of(own[tie.guid], tie.dataset) for tie in manifest.snapshots if tie.guid in own
    )
    return manifest.with_snapshots(ties)
