"""How much room datasets have, use and reserve."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zvmsnap.zfs import programs, zfs


class Room(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Properties of one dataset, in bytes; 0 for none."""

    available: int = 0
    used: int = 0
    refquota: int = 0
    usedbydataset: int = 0
    usedbysnapshots: int = 0
    reservation: int = 0
    refreservation: int = 0

    @property
    def reserved_again(self) -> int:
        """What its reservations need if they go to a clone of it, beyond what they use. At least.

        What was written to it stays used. Its snapshots go to the clone, and count as used of the
        `reservation` there.
        """
        again = min(self.refreservation, self.usedbydataset)
        if self.reservation:
            after = max(self.usedbysnapshots, self.reservation) + self.used - self.usedbysnapshots
            again += max(0, after - max(self.used, self.reservation))
        return again


def of(datasets: Iterable[str]) -> dict[str, Room]:
    """The room of each of these datasets. Raises ZfsFailed."""
    asked = sorted(set(datasets))
    if not asked:
        return {}
    names = ",".join(Room.__struct_fields__)
    numbers: dict[str, dict[str, int]] = {dataset: {} for dataset in asked}
    printed = zfs.command("get", "-Hp", "-o", "value,property,name", names, *asked)
    for value, name, dataset in programs.lines(printed, columns=3):
        numbers[dataset][name] = int(value) if value.isdigit() else 0
    return {dataset: Room(**fields) for dataset, fields in numbers.items()}
