"""The boot code of guests, assembled on the host."""

import struct
import tempfile
from functools import cache
from pathlib import Path

from labkit import command, settings
from labkit.errors import LabError

SOURCE = settings.LAB_DIR / "guest" / "counter.S"
TOKEN_SOURCE = settings.LAB_DIR / "guest" / "token.S"
SECTOR_BYTES = 512
COUNT_SECTORS = 2  # after sector 0; the last even count, and the last odd one
MAGIC = b"ZVMC"

_PARAMETERS_OFFSET = 0x1BA
_RAM_FROM_MIB = 16
_BIOS_KEEPS_MIB = 8  # at the top of the guest's RAM


@cache
def _assembled(source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        command.run(["as", "--32", source, "-o", made / "code.o"])
        command.run(["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat", "binary",
                     "-o", made / "code", made / "code.o"])
        return (made / "code").read_bytes()


def boot_code(*, fill_mib: int = 0, dirty_mib: int = 0, memory_mib: int = 64) -> bytes:
    """What to lay at the start of every disk of a counting guest.

    `fill_mib`: at boot fill that much RAM with noise, so that its image is as large.
    `dirty_mib`: rewrite that much RAM without end, so that a live dump never catches up.
    """
    if max(fill_mib, dirty_mib) > memory_mib - _RAM_FROM_MIB - _BIOS_KEEPS_MIB:
        raise LabError(f"a guest of {memory_mib} MiB has no {max(fill_mib, dirty_mib)} MiB to fill")
    code = bytearray(_assembled(SOURCE))
    struct.pack_into("<HH", code, _PARAMETERS_OFFSET, fill_mib, dirty_mib)
    return bytes(code[:SECTOR_BYTES] + bytes(COUNT_SECTORS * SECTOR_BYTES) + code[SECTOR_BYTES:])


def token_code(role: int) -> bytes:
    """What to lay at the start of the first disk of one of a pair (tests/lab/guest/token.S)."""
    code = bytearray(_assembled(TOKEN_SOURCE))
    struct.pack_into("<H", code, _PARAMETERS_OFFSET, role)
    return bytes(code)


def count_in(sectors: bytes) -> int:
    """The last count a guest wrote to a disk, of its sectors 1 and 2; -1 just after boot."""
    found = []
    for offset in range(0, COUNT_SECTORS * SECTOR_BYTES, SECTOR_BYTES):
        count, magic = struct.unpack_from("<i4s", sectors, offset)
        if magic == MAGIC:
            found.append(int(count))
    if not found:
        raise LabError(f"no count in {sectors[:16]!r}")
    return max(found)
