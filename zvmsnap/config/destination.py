"""Where points and their datasets are sent: `[USER@HOST:]POOL/PATH`. Pure.

A dataset keeps its whole name below the root: tank/vm/web goes to POOL/PATH/tank/vm/web, so that no
two of a host ever meet there, and everyone sees where it came from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common.errors import DestinationInvalid

# syncoid hands host names to a shell as they are: there is nothing in ours that one would read.
_USER = r"[A-Za-z_][A-Za-z0-9._-]*"
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"

# No colon in the pool, which would be taken for the end of a host.
_DATASET = r"[A-Za-z][A-Za-z0-9_. -]*(?:/[A-Za-z0-9_.:-][A-Za-z0-9_.: -]*)*"

# As both mbuffer and rsync read it.
_RATE = re.compile(r"[1-9][0-9]*[kMG]?")
_WHOLE = re.compile(rf"(?:(?P<host>(?:{_USER}@)?{_HOST}):)?(?P<root>{_DATASET})")


class MemoryWanted(StrEnum):
    """Whose RAM goes to a destination."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Destination:
    """`host` as ssh knows it, with the user if one is named; "" is this machine."""

    host: str
    root: str

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return self.at(self.root)

    def at(self, dataset: str) -> str:
        """A dataset there, as syncoid names it."""
        return f"{self.host}:{dataset}" if self.host else dataset

    def of(self, dataset: str) -> str:
        """The dataset there that one from here is sent to."""
        return f"{self.root}/{dataset}"

    def holds(self, dataset: str) -> bool:
        """Does a dataset there lie below the root?"""
        return dataset.startswith(f"{self.root}/")


def parse(text: str) -> Destination:
    """Read `[USER@HOST:]POOL/PATH`. Raises DestinationInvalid."""
    found = _WHOLE.fullmatch(text)
    if not found or text.endswith(" "):
        raise DestinationInvalid(
            f"{text!r}: is no destination: say [USER@HOST:]POOL/PATH; IPv6 addresses, ports and "
            "keys belong into ~/.ssh/config, under a name of its own"
        )
    return Destination(found["host"] or "", found["root"])


def check_rate(text: str) -> None:
    """Is that bytes per second, or nothing? Raises DestinationInvalid."""
    if text and not _RATE.fullmatch(text):
        raise DestinationInvalid(
            f"{text!r}: is no bandwidth: say bytes per second, with k, M or G behind, as in 50M"
        )
