"""One exception class per cause that an operator can act on.

Every message is one line: what happened, where, and what to do about it.
Exit codes: 1 something failed, 2 usage, configuration or environment.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class ZvmsnapError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = EXIT_FAILED


class HookEnvironmentInvalid(ZvmsnapError):
    """The hook was not called as sanoid calls it."""

    exit_code = EXIT_USAGE


class ConfigInvalid(ZvmsnapError):
    """The configuration file is missing, unreadable or has an unknown or wrong key."""

    exit_code = EXIT_USAGE


class ModeInvalid(ZvmsnapError):
    """That is no order of levels."""

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
    """There is no terminal on which one could be asked."""

    exit_code = EXIT_USAGE


class StagingUnusable(ZvmsnapError):
    """Staging cannot be used: it would be snapshotted itself, or QEMU cannot reach it."""


class NoSpace(ZvmsnapError):
    """The RAM image and the overlay would not fit into staging."""


class LockTimeout(ZvmsnapError):
    """Somebody else held a lock until our deadline."""


class Cancelled(ZvmsnapError):
    """A signal, or sanoid's death, ended the hook before it was done."""


class ZfsFailed(ZvmsnapError):
    """OpenZFS refused or could not be asked; nothing may be concluded from silence."""


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


class BlockJobNotReady(LibvirtFailed):
    """The block job exists but cannot be pivoted yet (VIR_ERR_BLOCK_COPY_ACTIVE)."""


class DumpAborted(LibvirtFailed):
    """The memory dump was aborted (VIR_ERR_OPERATION_ABORTED)."""


class NotReached(ZvmsnapError):
    """A level of coherence cannot be had of this guest now."""


class NotStill(ZvmsnapError):
    """The guest, or its file systems, could not be made to stand still, or did not stay so."""


class ScriptFailed(ZvmsnapError):
    """An administrator's pre-freeze or post-thaw failed, or took too long."""


class AgentSilent(LibvirtFailed):
    """A guest's agent does not answer, and has not got what it was asked for."""


class DomainBusy(ZvmsnapError):
    """The domain has a job, a block job or an overlay that must end first."""


class CommitFailed(ZvmsnapError):
    """An overlay could not be brought back into its base; the guest still writes to it."""


class OverlayUnreadable(ZvmsnapError):
    """What an overlay lies on cannot be told; it is kept, and nothing is concluded."""


class QemuImgFailed(ZvmsnapError):
    """qemu-img refused, or could not be run."""


class ImageUnloadable(ZvmsnapError):
    """A memory image is incomplete or of a kind that libvirt cannot load."""


class TpmUncapturable(ZvmsnapError):
    """The state of a guest's TPM cannot be captured, or has no TPM to be put back into."""


class CloneImpossible(ZvmsnapError):
    """The machine has something that cannot exist twice on a host."""


class VaultDamaged(ZvmsnapError):
    """An entry of the vault cannot be read, or lies where it must not."""


class VaultMissing(ZvmsnapError):
    """The vault is not the one that was used so far: its file system is not mounted?"""


class SnapshotMissing(ZvmsnapError):
    """ZFS has none of the snapshots that the moment was taken for."""


class LevelMissed(ZvmsnapError):
    """A point would be of less than the level that is required, so there is none."""


class RestoreImpossible(ZvmsnapError):
    """A point cannot be brought back as it was asked for; nothing was touched."""


class VerifyFailed(ZvmsnapError):
    """A machine that was started from a point does not live."""


class RestoreFailed(ZvmsnapError):
    """Bringing a point back failed on the way; says what is there now."""


class DestinationUnreachable(ZvmsnapError):
    """ssh could not connect, or the connection was cut."""


class FarFailed(ZvmsnapError):
    """A program on the machine of a destination failed."""


class SyncoidFailed(ZvmsnapError):
    """syncoid is not there, is too old, or could not send a dataset."""


class TakeRefused(ZvmsnapError):
    """A moment cannot be taken as it was asked for; nothing was touched."""


class TakeFailed(ZvmsnapError):
    """A moment was not taken: no snapshot of it stays, and all guests are on their own disks."""


class DropRefused(ZvmsnapError):
    """A point cannot be dropped: it is not ours to drop, or something depends on it."""


class SendRefused(ZvmsnapError):
    """What was asked for cannot be sent as it is now; nothing was."""


class FetchRefused(ZvmsnapError):
    """A point cannot be fetched over what is here; nothing was touched."""
