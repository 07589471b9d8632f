"""Stands in for the distribution's libvirt module, of which the unit tests only need to import.

The constants are libvirt's own. Whoever calls anything real gets an AttributeError.
"""

import sys

VIR_ERR_NO_DOMAIN = 42
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_OPERATION_ABORTED = 78
VIR_ERR_BLOCK_COPY_ACTIVE = 83
VIR_ERR_AGENT_UNRESPONSIVE = 86

VIR_DOMAIN_RUNNING = 1
VIR_DOMAIN_BLOCKED = 2
VIR_DOMAIN_PAUSED = 3
VIR_DOMAIN_SHUTDOWN = 4
VIR_DOMAIN_SHUTOFF = 5
VIR_DOMAIN_CRASHED = 6
VIR_DOMAIN_PMSUSPENDED = 7

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


# Also where the distribution has a real one: no unit test talks to a hypervisor.
sys.modules["libvirt"] = sys.modules[__name__]
