import pytest

from zvmsnap.zfs import room, zfs
from zvmsnap.zfs.room import Room


def test_of(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def command(*words: str) -> str:
        calls.append(words)
        return (
            "100\tavailable\ttank\n-\tusedbydataset\ttank\nnone\treservation\ttank\n"
            "7\tused\ttank/a b\n16\trefreservation\ttank/a b\n"
        )

    monkeypatch.setattr(zfs, "command", command)
    assert room.of(["tank/a b", "tank", "tank"]) == {
        "tank": Room(available=100),
        "tank/a b": Room(used=7, refreservation=16),
    }
    assert len(calls) == 1 and calls[0][-2:] == ("tank", "tank/a b")
    assert (room.of([]), len(calls)) == ({}, 1)
