"""libvirt's errors as our own exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from zvmsnap.common import foreign
from zvmsnap.common.errors import (
    AgentSilent,
    BlockJobNotReady,
    ConnectionLost,
    DomainGone,
    DomainLocked,
    DumpAborted,
    GivenUp,
    LibvirtFailed,
    NoAnswer,
)
from zvmsnap.virt.connection import LostConnection, QemuRefused

_CLASSES: dict[int, type[LibvirtFailed]] = {
    libvirt.VIR_ERR_NO_DOMAIN: DomainGone,
    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE: BlockJobNotReady,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: DomainLocked,
    libvirt.VIR_ERR_OPERATION_ABORTED: DumpAborted,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: AgentSilent,
}
# What is asked for is not possible with the guest as it is.
REFUSALS = frozenset(
    (
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    )
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise libvirt's errors as our own, with what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code() or 0
        message = foreign.line(error.get_error_message() or str(error))
        raise _CLASSES.get(code, LibvirtFailed)(f"{doing}: {message}", code) from error
    except (UnicodeError, SystemError) as error:
        # The binding takes text for UTF-8. In an answer it raises UnicodeDecodeError otherwise, in
        # the message of an error SystemError ("returned a result with an exception set").
        raise LibvirtFailed(f"{doing}: what it says is no UTF-8 text") from error
    except LostConnection as error:
        raise ConnectionLost(f"{doing}: the connection to libvirt was lost: {error}") from error
    except QemuRefused as error:
        raise LibvirtFailed(f"{doing}: QEMU refused: {error}") from error
    except GivenUp as error:
        raise NoAnswer(f"{doing}: {error}") from error
