"""What is measured: cells, each with a lab and guests of its own, and one line of results.

One needs no lab, and is measured first, when none runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REPEATS = 3
SHORT_REPEATS = 1

# Ways to take a snapshot of running guests, side by side in one cell. `usual` is a pair of shell
# hooks; all others are ours. sanoid takes the hourly snapshot alone, as in 23 of 24 rounds; for
# `paused, three names` the daily and monthly ones too. `take` is the command, without sanoid.
USUAL, MEMORY, PAUSED = "usual", "memory", "paused"
THREE_NAMES, TAKE = "paused, three names", "take"
FREEZE, QUIESCED = "usual freeze", "quiesced"
WAYS = (USUAL, MEMORY, PAUSED, TAKE)

# The same RAM images of one guest, as page images on a vault whose records and compression the
# words of the cell say; sent to a vault with such records; or compared with each other.
IMAGES, SENT, CHANGES = "page images", "sent to", "changes"
# The same disk, in a plain directory, by each way that `zvmsnap backup` has.
BACKUPS = "backups"
# Page images, without a lab, on the machine that runs the benchmark.
NATIVE = "page images natively"


@dataclass(frozen=True)
class Cell:
    """One cell; `minutes` is about what it takes in emulation on two quiet cores."""

    kind: str
    words: tuple[str, ...] = ()
    minutes: int = 5

    @property
    def id(self) -> str:
        """Its name in results and on the command line."""
        return ":".join((self.kind, *self.words))


def round_cell(filled_mib: int, disks: int, *, apparmor: bool) -> Cell:
    """Rounds on one guest with so much RAM filled, and so many disks."""
    words = (
        f"{filled_mib} MiB",
        f"{disks} disk{'s' * (disks > 1)}",
        f"AppArmor {'on' if apparmor else 'off'}",
    )
    return Cell("round", words, minutes=7 + filled_mib // 150 + disks)


# Of which most of the goals say something.
MIDDLE = round_cell(512, 2, apparmor=True)


def image_cell(*words: str) -> Cell:
    """Page images on such a vault, or sent to one, or compared."""
    return Cell(IMAGES, words, minutes=4)


def image_cells() -> list[Cell]:
    """Those that decide goals first."""
    vaults = [
        image_cell(record, compression)
        for record in ("16K", "64K", "128K")
        for compression in ("zstd", "lz4")
    ]
    sent = [image_cell(SENT, record) for record in ("16K", "128K")]
    return [vaults[0], sent[0], *vaults[1:], sent[1], image_cell(CHANGES)]


def whole() -> list[Cell]:
    """All cells, what decides most of the goals first."""
    return [
        Cell(NATIVE, minutes=2),
        MIDDLE,
        Cell("hooks", minutes=3),
        Cell("back", ("64 MiB",), minutes=8),
        Cell("back", ("512 MiB",), minutes=12),
        Cell("10 guests", minutes=30),
        *(
            round_cell(filled_mib, disks, apparmor=apparmor)
            for filled_mib in (64, 512, 1024)
            for disks in (1, 4)
            for apparmor in (True, False)
        ),
        round_cell(512, 8, apparmor=True),
        Cell("quiesced", minutes=6),
        Cell("peak memory", minutes=6),
        *image_cells(),
        Cell(BACKUPS, minutes=20),
        Cell("100 datasets", minutes=20),
        Cell("many points", ("1000 points", "10000 snapshots"), minutes=6),
        Cell("many points", ("10000 points", "100000 snapshots"), minutes=40),
    ]


def short() -> list[Cell]:
    """One of each kind, as small as it can be."""
    return [
        Cell(NATIVE, minutes=1),
        round_cell(64, 1, apparmor=True),
        round_cell(64, 1, apparmor=False),
        Cell("hooks", minutes=3),
        Cell("many points", ("100 points", "1000 snapshots"), minutes=3),
        Cell("back", ("64 MiB",), minutes=5),
        Cell("quiesced", minutes=6),
        Cell("peak memory", minutes=6),
        image_cells()[0],
        Cell(BACKUPS, minutes=10),
        Cell("3 guests", minutes=6),
        Cell("10 datasets", minutes=4),
    ]


def ways(cell: Cell) -> Sequence[str]:
    """The ways of a cell of rounds.

    Without AppArmor those alone that make overlays: it matters to no other.
    """
    if cell.words[2] == "AppArmor off":
        return USUAL, MEMORY
    return (*WAYS, THREE_NAMES) if cell == MIDDLE else WAYS


def warm_up(cell: Cell) -> Sequence[str]:
    """The ways of its round that does not count: what they use has been used by then."""
    return [way for way in ways(cell) if way in (USUAL, MEMORY)]


def number(word: str) -> int:
    """The number that a word of a cell begins with."""
    return int(word.partition(" ")[0])
