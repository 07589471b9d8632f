"""One libvirt domain: the verbs we use, with errors as our own exceptions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import libvirt

from zvmsnap.common.errors import LibvirtFailed, NoAnswer
from zvmsnap.virt.connection import Domain, translated
from zvmsnap.virt.domain_xml import Metadata, read_metadata, unplugged_cards
from zvmsnap.virt.guest_state import JOBS, PAUSES, STATES, BlockJob, PauseClock, knows_backup
from zvmsnap.virt.guest_state import JobProgress as JobProgress
from zvmsnap.virt.guest_state import Pause as Pause
from zvmsnap.virt.qemu_process import QemuProcess


class Guest:
    """One domain. Every method raises DomainGone or another LibvirtFailed."""

    def __init__(self, domain: Domain, name: str, uuid: str) -> None:
        self._domain = domain
        self.name = name
        self.uuid = uuid

    @contextmanager
    def apart(self) -> Iterator[Guest]:
        """The same guest through a connection of its own, for work beside that on others."""
        domain = self._domain.apart()
        try:
            yield Guest(domain, self.name, self.uuid)
        finally:
            domain.close()

    def check_answers(self) -> None:
        """Raises NoAnswer if its QEMU hangs.

        One that is stopped is not asked: while libvirt waits, it shows the definition late (11.3).
        """
        if (process := self.process()) and process.is_stopped:
            raise NoAnswer(f"{self.name}: its QEMU is stopped (SIGSTOP)")
        try:
            self.migrate_max_downtime_ms()
        except LibvirtFailed as error:
            if isinstance(error, NoAnswer):  # else somebody works on it: that is an answer, too
                raise

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str:
        """The live definition, or the one that the next start will use."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0
        flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        with self._doing("reading its definition"):
            return self._domain.definition(flags)

    def is_active(self) -> bool:
        """Is there a QEMU process for it?"""
        with self._doing("asking for its state"):
            return bool(self._domain.isActive())

    def is_persistent(self) -> bool:
        """Does its definition outlive its process?"""
        with self._doing("asking for its state"):
            return bool(self._domain.isPersistent())

    def state(self) -> str:
        """`running`, `paused`, `shut off`, ..."""
        with self._doing("asking for its state"):
            return STATES.get(self._domain.state()[0], "in an unknown state")

    def pause_reason(self) -> Pause | None:
        """Why it is paused, None if it is not."""
        with self._doing("asking for its state"):
            state, reason = self._domain.state()[:2]
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return None
        return PAUSES.get(reason, Pause.OTHER)

    def process(self) -> QemuProcess | None:
        """Its QEMU process, of which can be asked what it has open; None if there is none."""
        return QemuProcess.find(self.name, self.uuid)

    def define(self, xml: str) -> None:
        """Replace its persistent definition."""
        with self._doing("defining"):
            self._domain.do("connect", lambda domain: domain.connect().defineXMLFlags(xml, 0))

    def create(self, *, paused: bool = False) -> None:
        """Start it, from its disks."""
        with self._doing("starting"):
            self._domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def destroy(self) -> None:
        """End its process at once."""
        with self._doing("stopping"):
            self._domain.destroy()

    def save(self, image: str) -> None:
        """Write its RAM into an image and stop it, at one instant."""
        with self._doing("saving its RAM"):
            if hasattr(libvirt, "VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT"):  # libvirt 11.2
                # Whatever qemu.conf says: nobody waits for a compressor while the guest is off. Nor
                # sparse: it loads again (11.3), but is as long as all RAM, which is hashed and
                # sent then; and libvirt's binding (11.3) can ask for no parallel channels.
                wanted = {
                    libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: image,
                    libvirt.VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT: "raw",
                }
                self._domain.saveParams(wanted, 0)
            else:
                self._domain.saveFlags(image, None, 0)

    def pull_plugs(self) -> None:
        """Set down the links of those network cards whose definition says so.

        Needed once RAM was loaded: QEMU takes the state of a link from RAM, while libvirt takes it
        from the definition. So libvirt is told that the link is up, and after that down.
        """
        for cards in unplugged_cards(self.xml()):
            for card in cards:
                with self._doing("setting a link"):
                    self._domain.updateDeviceFlags(card, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def undefine(self) -> None:
        """Remove its definition, and all that libvirt keeps with it.

        NVRAM, the state of its TPM, a managed save image, and what is known of snapshots and
        checkpoints: libvirt refuses to undefine a guest that is off and still has any of these.
        """
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
        # libvirt 8.9 and later; before, the state of a TPM always went with the definition.
        flags |= getattr(libvirt, "VIR_DOMAIN_UNDEFINE_TPM", 0)
        with self._doing("undefining"):
            self._domain.undefineFlags(flags)

    def cpu_time_s(self) -> float:
        """How long its CPUs have worked."""
        with self._doing("asking for its CPU time"):
            return float(self._domain.info()[4]) / 1e9

    def screenshot(self) -> bytes:
        """Its first screen, in the form that QEMU gives it (a portable pixmap)."""
        with self._doing("taking a screenshot"):
            return self._domain.picture()

    def agent_set_timeout(self, timeout_s: int) -> None:
        """Set how long answers of its agent are waited for; libvirt's default is for ever."""
        with self._doing("setting its agent's time limit"):
            self._domain.agentSetResponseTimeout(timeout_s, 0)

    def agent_command(self, command: str, timeout_s: int) -> str:
        """Send a command (JSON) to its agent, return the answer."""
        with self._doing("asking its agent"):
            return self._domain.ask_agent(command, timeout_s)

    def ask_qemu(self, command: str, arguments: Mapping[str, str]) -> Any:
        """The answer of QEMU's monitor; that it was asked is in the guest's log: "tainted"."""
        with self._doing(f"QEMU's {command}"):
            return self._domain.ask_qemu(command, arguments)

    def set_time(self, now_s: float) -> None:
        """Set its clock, through its agent."""
        seconds, fraction_s = divmod(now_s, 1)
        with self._doing("setting its clock"):
            self._domain.setTime({"seconds": int(seconds), "nseconds": int(fraction_s * 1e9)})

    def fs_freeze(self) -> int:
        """Freeze its file systems, through its agent; returns how many.

        They stay frozen until `fs_thaw`, whoever dies: libvirt has no lease for it.
        """
        with self._doing("freezing its file systems"):
            return int(self._domain.fsFreeze(None, 0))

    def fs_thaw(self) -> int:
        """Thaw its file systems; returns how many were frozen. Harmless if none was."""
        with self._doing("thawing its file systems"):
            return int(self._domain.fsThaw(None, 0))

    def managed_save_xml(self) -> str | None:
        """The definition in its managed save image, None if it has none."""
        with self._doing("reading its managed save image"):
            if not self._domain.hasManagedSaveImage(0):
                return None
            return str(self._domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))

    def managed_save_define(self, xml: str) -> None:
        """Change host-side details, such as paths of disks, in its managed save image."""
        with self._doing("changing its managed save image"):
            self._domain.managedSaveDefineXML(xml, 0)

    @knows_backup(True)
    def has_job(self) -> bool:
        """Is a migration, backup, save or dump under way?"""
        with self._doing("asking for its job"):
            return bool(self._domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def is_dumped(self) -> bool:
        """Is the job under way a snapshot with RAM, of anybody?"""
        return self.job_kind() == "snapshot"

    def job_progress(self) -> JobProgress:
        """How far the dump under way is."""
        with self._doing("asking for the progress of its dump"):
            return JobProgress.of(self._domain.jobStats(0))

    @knows_backup("backup")
    def job_kind(self) -> str:
        """What job is under way: `backup`, `migration`, ...; "" if none, or one of another kind."""
        with self._doing("asking for its job"):
            stats = self._domain.jobStats(0)
        return JOBS.get(stats.get("operation", 0), "")

    def has_block_job(self, target: str) -> bool:
        """Is a job on this disk under way: a copy, a commit, a backup?"""
        return self.block_job(target) is not None

    def block_job(self, target: str) -> BlockJob | None:
        """The job on this disk, and how far it is; None without one."""
        with self._doing(f"asking for the job on {target}"):
            info = self._domain.blockJobInfo(target, 0)
        return BlockJob.of(info) if info else None

    def snapshot_create(
        self, xml: str, *, disk_only: bool = False, reuse_overlays: bool = False
    ) -> None:
        """Take an atomic snapshot of which libvirt keeps no metadata: live RAM and disks, or disks.

        Blocks until RAM is written and the disks are on their overlays; `abort_job` from another
        thread ends it (DumpAborted). If it fails, libvirt resumes the guest and removes the files
        that it made. If a disk is `manual`, the guest is paused when it returns. `reuse_overlays`:
        the files of the overlays exist already, and stay if it fails. Without metadata nobody can
        later load this RAM over newer disks.
        """
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        )
        if disk_only:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        else:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        if reuse_overlays:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        with self._doing("snapshot of its disks" if disk_only else "memory snapshot"):
            self._domain.snapshotCreateXML(xml, flags)

    def abort_job(self) -> None:
        """End the memory dump under way."""
        with self._doing("aborting its dump"):
            self._domain.abortJob()

    def suspend(self) -> None:
        """Stop its CPUs."""
        with self._doing("pausing"):
            self._domain.suspend()

    def resume(self) -> None:
        """Let its CPUs run again."""
        with self._doing("resuming"):
            self._domain.resume()

    def migrate_max_downtime_ms(self) -> int:
        """The pause that QEMU allows itself for the last of RAM."""
        with self._doing("reading its allowed pause"):
            return self._told(self._domain.migrateGetMaxDowntime(0))

    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None:
        """Set that pause. It persists in QEMU: whoever raises it puts the old one back."""
        with self._doing("setting its allowed pause"):
            self._domain.migrateSetMaxDowntime(pause_ms, 0)

    def migrate_max_speed_mib(self) -> int:
        """The speed, in MiB/s, that libvirt allows a migration."""
        with self._doing("reading its allowed speed"):
            return self._told(self._domain.migrateGetMaxSpeed(0))

    def migrate_set_max_speed_mib(self, mib_per_s: int) -> None:
        """Set that speed, also of a dump under way. It persists: whoever lowers it puts it back."""
        with self._doing("setting its allowed speed"):
            self._domain.migrateSetMaxSpeed(mib_per_s, 0)

    def block_commit(self, target: str, base: str) -> None:
        """Start to merge the overlays above `base` into it.

        Without a base libvirt would commit down to the bottom, into a golden image.
        """
        with self._doing(f"commit of {target}"):
            self._domain.blockCommit(target, base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)

    def block_pull(self, target: str) -> None:
        """Start to copy into the image of a disk what it has from the images below it."""
        with self._doing(f"pull of {target}"):
            self._domain.blockPull(target, 0, 0)

    def block_job_abort(self, target: str) -> None:
        """End the job on a disk, which stays on the images that it is on."""
        with self._doing(f"ending the job on {target}"):
            self._domain.blockJobAbort(target, 0)

    def block_job_pivot(self, target: str) -> None:
        """Switch disk `target` to its base. Raises BlockJobNotReady: try again."""
        with self._doing(f"pivot of {target}"):
            self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def snapshot_names(self) -> list[str]:
        """Names of the snapshots of which libvirt keeps metadata."""
        with self._doing("listing its snapshots"):
            return [str(snapshot.getName()) for snapshot in self._domain.listAllSnapshots()]

    def snapshot_delete_metadata(self, name: str) -> None:
        """Make libvirt forget a snapshot, without touching any disk or image."""
        with self._doing(f"forgetting snapshot {name}"):
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
            self._domain.do("", lambda domain: domain.snapshotLookupByName(name).delete(flags))

    def snapshot_metadata(self) -> list[Metadata]:
        """What libvirt keeps of its snapshots."""
        with self._doing("reading what is kept of its snapshots"):
            return self._domain.do(
                "listAllSnapshots",
                lambda domain: [
                    read_metadata(one.getXMLDesc(0)) for one in domain.listAllSnapshots(0)
                ],
            )

    def checkpoint_metadata(self) -> list[Metadata]:
        """What libvirt keeps of its checkpoints."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
        with self._doing("reading what is kept of its checkpoints"):
            return self._domain.do(
                "listAllCheckpoints",
                lambda domain: [
                    read_metadata(one.getXMLDesc(flags)) for one in domain.listAllCheckpoints(0)
                ],
            )

    def checkpoint_delete(self, name: str, *, metadata_only: bool) -> None:
        """Make libvirt forget a checkpoint; with its bitmaps, if it runs and none is missing."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if metadata_only else 0
        with self._doing(f"forgetting checkpoint {name}"):
            self._domain.do("", lambda domain: domain.checkpointLookupByName(name, 0).delete(flags))

    @contextmanager
    def pauses(self) -> Iterator[PauseClock]:
        """Measures how long the guest is paused."""
        clock = PauseClock()
        with (
            self._events(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, clock.on_lifecycle),
            self._events(libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, clock.on_job),
        ):
            yield clock

    @contextmanager
    def block_job_events(self) -> Iterator[threading.Event]:
        """An event that is set whenever a block job of this guest changes its state."""
        changed = threading.Event()

        def on_block_job(*_arguments: object) -> None:
            changed.set()

        with self._events(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, on_block_job):
            yield changed

    @contextmanager
    def _events(self, kind: int, callback: Callable[..., None]) -> Iterator[None]:
        def register(domain: Any) -> tuple[Any, int]:
            connection = domain.connect()
            return connection, connection.domainEventRegisterAny(domain, kind, callback, None)

        with self._doing("registering for events"):
            connection, handle = self._domain.do("domainEventRegisterAny", register)
        try:
            yield
        finally:
            # There is nothing to unregister from a connection that was lost.
            with suppress(LibvirtFailed), self._doing("unregistering from events"):
                self._domain.do(
                    "domainEventDeregisterAny",
                    lambda _domain: connection.domainEventDeregisterAny(handle),
                )

    def _told(self, value: int | None) -> int:
        if value is not None:
            return int(value)
        # libvirt's binding raises nothing when such a call fails.
        raise LibvirtFailed(f"{self.name}: libvirt does not say what it allows: did it just end?")

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with translated(f"{self.name}: {what}"):
            yield
