"""One exception class per cause that an operator can act on.

Every message is one line: what happened, where, and what to do about it. It may quote names and
what others say, so it is made printable here.
Exit codes: 1 something failed, 2 usage, configuration or environment.
"""

from __future__ import annotations

from zvmsnap.common import foreign

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class ZvmsnapError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = EXIT_FAILED

    def __str__(self) -> str:
        return foreign.printable(super().__str__())


class HookEnvironmentInvalid(ZvmsnapError):
    """The hook was not called as sanoid calls it."""

    exit_code = EXIT_USAGE


class SanoidUnanswered(ZvmsnapError):
    """sanoid does not say what it is going to snapshot."""


class SanoidConfInvalid(ZvmsnapError):
    """sanoid.conf cannot be read, and sanoid does not start with it."""

    exit_code = EXIT_USAGE


class ConfigInvalid(ZvmsnapError):
    """The configuration file is missing, unreadable or has an unknown or wrong key."""

    exit_code = EXIT_USAGE


class SetupRefused(ZvmsnapError):
    """`zvmsnap init` does not know enough to propose anything, or a file was changed meanwhile."""


class ModeInvalid(ZvmsnapError):
    """That is no mode: no list of levels."""

    exit_code = EXIT_USAGE


class KeepInvalid(ZvmsnapError):
    """That says not how long RAM is kept."""

    exit_code = EXIT_USAGE


class AgeInvalid(ZvmsnapError):
    """That is no age."""

    exit_code = EXIT_USAGE


class PointNotFound(ZvmsnapError):
    """No point, or more than one, answers to that name."""

    exit_code = EXIT_USAGE


class GuestNotFound(ZvmsnapError):
    """No guest answers to that name or UUID."""

    exit_code = EXIT_USAGE


class DestinationInvalid(ZvmsnapError):
    """That is no name of a destination."""

    exit_code = EXIT_USAGE


class ConfirmationMissing(ZvmsnapError):
    """A confirmation is needed, and no terminal can ask for it."""

    exit_code = EXIT_USAGE


class StagingUnusable(ZvmsnapError):
    """Staging cannot be used: it would be snapshotted itself, or QEMU cannot reach it."""


class DirectoryMisplaced(ZvmsnapError):
    """The vault, the journal or staging is on a dataset that a restore would move."""


class NoSpace(ZvmsnapError):
    """The RAM image and the overlay would not fit into staging."""


class LockTimeout(ZvmsnapError):
    """Another process held a lock until the timeout; `holder` says what for."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class Cancelled(ZvmsnapError):
    """A signal, or sanoid's death, ended the hook before it was done."""


class GivenUp(ZvmsnapError):
    """A call did not end in time; it goes on, and nobody waits for it any more."""


class ZfsFailed(ZvmsnapError):
    """OpenZFS refused, or could not be asked: then nothing may be concluded."""


class HypervisorUnreachable(ZvmsnapError):
    """No connection to libvirt."""


class LibvirtFailed(ZvmsnapError):
    """A libvirt call failed for a cause without a class of its own.

    `code` is libvirt's error number (VIR_ERR_...).
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class DomainGone(LibvirtFailed):
    """The domain does not exist any more, or stopped running meanwhile."""


class DomainLocked(LibvirtFailed):
    """Another call keeps libvirt from answering for this domain (VIR_ERR_OPERATION_TIMEOUT)."""


class NoAnswer(LibvirtFailed):
    """libvirt, or the guest's QEMU, did not answer in time: the call was given up."""


class ConnectionLost(LibvirtFailed):
    """The connection broke during a call; the next call makes a new one."""


class BlockJobNotReady(LibvirtFailed):
    """The block job exists but cannot be pivoted yet (VIR_ERR_BLOCK_COPY_ACTIVE)."""


class DumpAborted(LibvirtFailed):
    """The memory dump was aborted (VIR_ERR_OPERATION_ABORTED)."""


class NotReached(ZvmsnapError):
    """A level cannot be reached with this guest now."""


class OverlayHeld(ZvmsnapError):
    """QEMU has an overlay open that no disk of the guest uses, and does not close it."""


class LevelRefused(ZvmsnapError):
    """libvirt or QEMU refuse a level to such a guest, before anything is done to it: no failure."""


class NotHeld(ZvmsnapError):
    """The guest could not be paused or its file systems frozen, or they did not stay so."""


class ScriptFailed(ZvmsnapError):
    """An administrator's pre-freeze or post-thaw failed, or took too long."""


class AgentSilent(LibvirtFailed):
    """A guest's agent does not answer, and did not receive the request."""


class DomainBusy(ZvmsnapError):
    """The domain has a job, a block job or an overlay that must end first."""


class RunUnderWay(DomainBusy):
    """Another run of the guest, or a command, is under way for too long to wait for it.

    `captures`: a run, or a backup, which has captured the guest or is about to.
    """

    def __init__(self, message: str, *, captures: bool) -> None:
        super().__init__(message)
        self.captures = captures


class CommitFailed(ZvmsnapError):
    """An overlay could not be merged into its base; the guest still writes to it."""


class OverlayUnreadable(ZvmsnapError):
    """The image below an overlay cannot be read; the overlay is kept."""


class QemuImgFailed(ZvmsnapError):
    """qemu-img refused, or could not be run."""


class ImageUnloadable(ZvmsnapError):
    """A RAM image is incomplete, or of a kind that libvirt cannot load."""


class NotUnderstood(ZvmsnapError):
    """A RAM image cannot be taken apart into a page image: it is stored as libvirt wrote it."""


class TpmUncapturable(ZvmsnapError):
    """The state of a guest's TPM cannot be captured, or the guest has no TPM to restore it to."""


class CloneImpossible(ZvmsnapError):
    """The guest has something that cannot exist twice on a host."""


class CloneUntrusted(CloneImpossible):
    """The point was not made here and reaches more of the host than is allowed without --trust."""


class VaultDamaged(ZvmsnapError):
    """A point in the vault cannot be read, or is reached through a symlink."""


class PointGone(ZvmsnapError):
    """A point was removed while it was in use."""


class VaultMissing(ZvmsnapError):
    """The vault is not the one that was used so far: maybe its file system is not mounted."""


class WorkOfOtherVersion(ZvmsnapError):
    """A journal file has another schema: only the version that wrote it can finish its work."""


class SnapshotMissing(ZvmsnapError):
    """ZFS has none of the snapshots of the run, or not all that a point needs."""


class PoolMissing(SnapshotMissing):
    """Nothing is known of snapshots that a point needs, as their pool is not imported."""


class LevelMissed(ZvmsnapError):
    """No point is made, as it would be of less than the required level."""


class RestoreImpossible(ZvmsnapError):
    """A point cannot be restored as requested; nothing was touched."""


class WrongDisk(ZvmsnapError):
    """QEMU has another disk open than the guest's: it must not run."""


class VerifyFailed(ZvmsnapError):
    """A guest that was started from a point does not live."""


class ExportImpossible(ZvmsnapError):
    """A point has no RAM image to be exported, or there is no room for it."""


class RestoreFailed(ZvmsnapError):
    """A restore failed on the way; the message says in which state the guest is."""


class DestinationUnreachable(ZvmsnapError):
    """ssh could not connect, or the connection was cut."""


class RemoteFailed(ZvmsnapError):
    """A program on the machine of a destination failed."""


class EncryptionFailed(ZvmsnapError):
    """A file cannot be encrypted, or decrypted, with age; or it is not what it should be."""


class SyncoidFailed(ZvmsnapError):
    """syncoid is not installed, is too old, or could not send a dataset."""


class TakeRefused(ZvmsnapError):
    """A run cannot be taken as requested; nothing was touched."""


class TakeFailed(ZvmsnapError):
    """A run failed: none of its snapshots is kept, and all guests are on their own disks."""


class DropRefused(ZvmsnapError):
    """A point cannot be dropped: its snapshots are sanoid's, or something depends on them."""


class SendRefused(ZvmsnapError):
    """A point cannot be sent now; nothing was sent."""


class FetchRefused(ZvmsnapError):
    """A point cannot be fetched over what this host has; nothing was touched."""


class BackupInvalid(ZvmsnapError):
    """What was said names no backup, no directory of backups, or contradicts itself."""

    exit_code = EXIT_USAGE


class BackupImpossible(ZvmsnapError):
    """A guest cannot be backed up as requested; nothing was changed."""


class BackupRefused(BackupImpossible):
    """libvirt or QEMU refuse their own backup job; nothing was changed."""


class BackupFailed(ZvmsnapError):
    """A backup failed on the way; nothing of it is left, or the message says what."""


class BackupDamaged(ZvmsnapError):
    """A backup is not what it should be: a file is missing, changed, or names another."""


class ImportImpossible(ZvmsnapError):
    """A backup cannot be imported as requested; nothing was touched."""


class ImportFailed(ZvmsnapError):
    """An import failed on the way; the message says what is left of it, if anything."""


class DiskUnreadable(ZvmsnapError):
    """A disk, or an image of it, cannot be read, or must not be."""


class FilesImpossible(ZvmsnapError):
    """The files of a point cannot be shown, or not copied where they should go."""


class ReportUnwritable(ZvmsnapError):
    """The file of a report cannot be written; an earlier one is as it was."""


class LibguestfsMissing(FilesImpossible):
    """libguestfs for Python is not installed."""

    exit_code = EXIT_USAGE


class FlattenImpossible(ZvmsnapError):
    """A chain of images cannot be merged as requested; nothing was touched."""


class FlattenFailed(ZvmsnapError):
    """A chain of images was not merged; the guest is on it as before."""
