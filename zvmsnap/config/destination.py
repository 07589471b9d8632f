"""Where points and their datasets are sent: `[USER@HOST:]POOL/PATH`. Pure.

A dataset keeps its whole name below this root: tank/vm/web is sent to POOL/PATH/tank/vm/web. So no
two datasets of a host get one name, and everyone sees where a dataset came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import DestinationInvalid, VaultMissing

# Of its root: where the vault there is.
PROPERTY = "zvmsnap:vault"
SAYS_VAULT = (PROPERTY, "mountpoint", "mounted")
_BESIDE = "zvmsnap-vault"

# syncoid hands host names to a shell without quotes, so they hold nothing that a shell would read.
_USER = r"[A-Za-z_][A-Za-z0-9._-]*"
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"

# No colon in the name of the pool: it would be read as the end of a host's name.
_ROOT = r"[^:/]+(?:/.*)?"

# What both mbuffer and rsync can read.
_RATE = re.compile(r"[1-9][0-9]*[kMG]?")
_WHOLE = re.compile(rf"(?:(?P<host>(?:{_USER}@)?{_HOST}):)?(?P<root>{_ROOT})")


class MemoryWanted(StrEnum):
    """Of which points the RAM is sent: of the latest of each guest, of all, or of none."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Destination:
    """A machine and the dataset below which it stores what is sent.

    `host` as ssh knows it, with the user if one is named; "" is this machine.
    """

    host: str
    root: str

    @property
    def name(self) -> str:
        """The destination as one writes it on the command line."""
        return self.at(self.root)

    def at(self, dataset: str) -> str:
        """A dataset on that machine, as syncoid names it."""
        return f"{self.host}:{dataset}" if self.host else dataset

    def of(self, dataset: str) -> str:
        """The dataset to which a dataset of this machine is sent."""
        return f"{self.root}/{dataset}"

    def vault(self, properties: Mapping[str, str]) -> str:
        """The directory of its vault, by the properties SAYS_VAULT of the root.

        Raises VaultMissing.
        """
        path = properties.get(PROPERTY)
        if not path:
            mountpoint = properties.get("mountpoint", "")
            # One that is `legacy` may be mounted, anywhere.
            if properties.get("mounted") != "yes" or not mountpoint.startswith("/"):
                raise VaultMissing(
                    f"{self.name}: where its vault is, is not known: zfs set "
                    f"{PROPERTY}=/DIRECTORY {self.root} there, or mount it"
                )
            return f"{mountpoint.rstrip('/')}/{_BESIDE}"
        if not path.startswith("/") or not path.isprintable():
            raise VaultMissing(f"{self.name}: {PROPERTY} is {path!r}, and no absolute path")
        return path

    def holds(self, dataset: str) -> bool:
        """Is a dataset of that machine below the root?"""
        return dataset.startswith(f"{self.root}/")


def parse(text: str) -> Destination:
    """Read `[USER@HOST:]POOL/PATH`. Raises DestinationInvalid."""
    match = _WHOLE.fullmatch(text)
    if not match or not _is_root(match["root"]):
        raise DestinationInvalid(
            f"{text!r}: is no destination: say [USER@HOST:]POOL/PATH; for an IPv6 address, a port "
            "or a key, define a host in ~/.ssh/config"
        )
    return Destination(match["host"] or "", match["root"])


def _is_root(name: str) -> bool:
    """ZFS allows more blanks than these; they would be typing errors."""
    return snapshot_name.is_dataset(name) and not name.endswith(" ") and "/ " not in name


def check_rate(text: str) -> None:
    """Raises DestinationInvalid unless the text is a number of bytes per second, or empty."""
    if text and not _RATE.fullmatch(text):
        raise DestinationInvalid(
            f"{text!r}: is no bandwidth: say bytes per second, as in 50M (k, M or G)"
        )
