"""One thing of the host that a domain's definition names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a definition names."""

    FILE = "file"
    DIRECTORY = "directory"
    BLOCK = "block device"
    SOCKET = "socket"
    PORT = "port"
    HOST_DEVICE = "device of the host"
    NETWORK = "network"
    VOLUME = "volume of a storage pool"
    REMOTE = "network disk"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Resource:
    """What one element of a definition names.

    `called` is for messages: "disk vda". `place` is its path, address, port, or for a volume
    "pool/volume": two definitions that name the same kind and place share it.

    `writable`: the guest or its QEMU can change it, or it can serve one machine alone, as a port or
    a socket. Networks are not: machines share them. `is_state`: RAM fits only to its content of
    that instant. A backing file is state, and not writable.

    `element` is where it stands in the definition, as "devices/disk/backingStore/source@file".
    `target` is that of its disk. `is_optional`: the guest starts without it (startupPolicy).
    """

    called: str
    kind: Kind
    place: str
    writable: bool = False
    is_state: bool = False
    element: str = ""
    target: str = ""
    is_optional: bool = False
