"""Stands in for the distribution's libvirt module, of which the unit tests only need to import.

The constants are libvirt's own. Whoever calls anything real gets an AttributeError.
"""

import sys

VIR_ERR_INTERNAL_ERROR = 1
VIR_ERR_NO_DOMAIN = 42
VIR_ERR_INVALID_SECRET = 65
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_NO_SUPPORT = 3
VIR_ERR_OPERATION_INVALID = 55
VIR_ERR_OPERATION_UNSUPPORTED = 84
VIR_ERR_CONFIG_UNSUPPORTED = 67
VIR_ERR_ARGUMENT_UNSUPPORTED = 74
VIR_ERR_OPERATION_ABORTED = 78
VIR_ERR_BLOCK_COPY_ACTIVE = 83
VIR_ERR_AGENT_UNRESPONSIVE = 86

VIR_SECRET_USAGE_TYPE_NONE = 0
VIR_SECRET_USAGE_TYPE_VOLUME = 1
VIR_SECRET_USAGE_TYPE_CEPH = 2
VIR_SECRET_USAGE_TYPE_ISCSI = 3

VIR_DOMAIN_RUNNING = 1
VIR_DOMAIN_BLOCKED = 2
VIR_DOMAIN_PAUSED = 3
VIR_DOMAIN_SHUTDOWN = 4
VIR_DOMAIN_SHUTOFF = 5
VIR_DOMAIN_CRASHED = 6
VIR_DOMAIN_PMSUSPENDED = 7

VIR_DOMAIN_JOB_OPERATION_SAVE = 2
VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN = 4
VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT = 5
VIR_DOMAIN_JOB_OPERATION_SNAPSHOT = 6
VIR_DOMAIN_JOB_OPERATION_DUMP = 8
VIR_DOMAIN_JOB_OPERATION_BACKUP = 9

VIR_DOMAIN_BLOCK_JOB_TYPE_PULL = 1
VIR_DOMAIN_BLOCK_JOB_TYPE_COPY = 2
VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT = 3
VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT = 4

VIR_DOMAIN_PAUSED_UNKNOWN = 0
VIR_DOMAIN_PAUSED_USER = 1
VIR_DOMAIN_PAUSED_MIGRATION = 2
VIR_DOMAIN_PAUSED_SAVE = 3
VIR_DOMAIN_PAUSED_DUMP = 4
VIR_DOMAIN_PAUSED_IOERROR = 5
VIR_DOMAIN_PAUSED_WATCHDOG = 6
VIR_DOMAIN_PAUSED_SNAPSHOT = 9
VIR_DOMAIN_PAUSED_POSTCOPY_FAILED = 13


class libvirtError(Exception):  # noqa: N801 - libvirt's own name
    """What libvirt raises."""


class Failure(libvirtError):
    """The same, with what it says and its code; without one it is an internal error."""

    def __init__(self, message: str, code: int = VIR_ERR_INTERNAL_ERROR) -> None:
        super().__init__(message)
        self._code = code

    def get_error_code(self) -> int:
        return self._code

    def get_error_message(self) -> str:
        return str(self)


# Also where the distribution has a real one: no unit test talks to a hypervisor.
sys.modules["libvirt"] = sys.modules[__name__]
