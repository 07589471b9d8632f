import json
from collections.abc import Callable

import pytest

from tests.fakes.zfs_pool import FakePool
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import branches, mounts, programs, zfs
from zvmsnap.zfs.branches import Fresh
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Dataset, Room

Calls = list[tuple[str, ...]]
Answer = Callable[..., Calls]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Let `zfs` print that; the arguments of its calls."""
    calls: Calls = []

    def answer(printed: str, may_be_partial: bool = False) -> Calls:
        def output(*words: str, partial: bool = False, **_: object) -> bytes:
            assert partial is may_be_partial
            calls.append(words)
            return printed.encode()

        monkeypatch.setattr(programs, "output", output)
        return calls

    return answer


WEB = "tank/web\tfilesystem\t11\t-\tyes\ton\toff\t-\n"
DATA = "tank/web/data\tvolume\t12\ttank/gold@a\t-\t-\taes-256-gcm\tunavailable\n"


def test_below(answers: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    table = [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/", "/srv/web", "tank/web")]
    bind = Mount(3, 1, "/sub", "/elsewhere", "tank/web")
    monkeypatch.setattr(mounts, "read_table", lambda: [*table, bind])
    calls = answers(WEB + DATA, True)
    web = Dataset(
        "tank/web",
        "filesystem",
        compressed=False,
        guid=11,
        mounted=True,
        mountpoint="/srv/web",
        canmount="on",
    )
    data = Dataset(
        "tank/web/data",
        "volume",
        compressed=False,
        guid=12,
        origin="tank/gold@a",
        encrypted=True,
        locked=True,
    )
    assert branches.below(["tank/web", "tank/gone", "tank/web"]) == {
        "tank/web": web,
        "tank/web/data": data,
    }
    assert [words[-3:] for words in calls] == [("-r", "tank/gone", "tank/web")]
    assert branches.below([]) == {}
    assert len(calls) == 1  # without names, zfs would list all
    answers(WEB)
    assert branches.everything() == {"tank/web": web}
    assert "-r" not in calls[-1] and calls[-1][-1].startswith("name,")


def test_fresh(answers: Answer) -> None:
    calls = answers("tank/a\t5\t8192\ntank/b\t6\t0\n")
    assert branches.fresh(["tank/a", "tank/b"]) == {"tank/a": Fresh(5, 8192), "tank/b": Fresh(6, 0)}
    assert branches.fresh([]) == {}
    assert len(calls) == 1


def test_set_on(answers: Answer) -> None:
    calls = answers("")
    branches.set_on(["tank/a", "tank/b"], {"canmount": "noauto", "u:v": "x=y"})
    assert calls == [("zfs", "set", "canmount=noauto", "u:v=x=y", "tank/a", "tank/b")]
    branches.set_on([], {"canmount": "on"})
    branches.set_on(["tank/a"], {})
    assert len(calls) == 1


def test_snapshot(answers: Answer) -> None:
    calls = answers("")
    branches.snapshot(["tank/b", "cheap", "tank/a"], "now")
    assert calls == [
        ("zfs", "snapshot", "cheap@now"),
        ("zfs", "snapshot", "tank/a@now", "tank/b@now"),
    ]


def test_a_line_that_is_none(answers: Answer) -> None:
    answers(json.dumps({}) + "\n", True)
    with pytest.raises(ZfsFailed, match="printed 1 columns"):
        branches.below(["tank"])


def test_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def command(*words: str) -> str:
        calls.append(words)
        return (
            "100\tavailable\ttank\n-\tusedbydataset\ttank\nnone\treservation\ttank\n"
            "7\tused\ttank/a b\n16\trefreservation\ttank/a b\n"
        )

    monkeypatch.setattr(zfs, "command", command)
    assert branches.rooms(["tank/a b", "tank", "tank"]) == {
        "tank": Room(available=100),
        "tank/a b": Room(used=7, refreservation=16),
    }
    assert len(calls) == 1 and calls[0][-2:] == ("tank", "tank/a b")
    assert (branches.rooms([]), len(calls)) == ({}, 1)


def test_clones_follow_each_promotion(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool()
    pool.install(monkeypatch)
    pool.add("tank")
    pool.add("tank/a")
    for number, name in enumerate("bcd"):
        pool.take_snapshots([f"tank/{'aab'[number]}"], f"s{number}")
        pool.clone(f"tank/{'aab'[number]}@s{number}", f"tank/{name}", {})
    a, b, c, d = (pool.guid(f"tank/{name}") for name in "abcd")
    clones = branches.Clones()
    clones.promote(d, over=a)  # it is none of that one
    clones.promote(d, over=b)
    clones.promote(d, over=a)
    assert (pool.history("tank/d"), pool.history("tank/a")) == (["s0", "s2"], ["s1"])
    # s0 went from a to d: a is a clone of d now, and c one of a still.
    clones.promote(c, over=d)
    assert pool.history("tank/c") == []
    clones.promote(c, over=a)
    assert (pool.history("tank/c"), pool.history("tank/a")) == (["s1"], [])
    clones.promote(c, over=d)
    assert pool.history("tank/c") == ["s0", "s1"]
