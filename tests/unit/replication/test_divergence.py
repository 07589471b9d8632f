import pytest

from zvmsnap.common.errors import SendRefused
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.replication import divergence
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, Subtree

NAS = RemoteHost("nas")
A, DATA, OTHER = "far/t/a", "far/t/a/data", "far/t/a/other"


def common(*datasets: str) -> dict[str, Snapshot]:
    return {dataset: Snapshot(dataset, "s1", 1, 1) for dataset in datasets}


def branch(*datasets: str) -> Subtree:
    return Subtree(frozenset(datasets), {}, frozenset({A, OTHER}))


PLANS = [
    pytest.param([], [A, DATA], [A, DATA], [], id="nothing"),
    pytest.param([A], [A, DATA], [A, DATA], [A], id="what is below goes along"),
    pytest.param([DATA], [A, DATA], [A, DATA], [DATA], id="only what is below"),
    pytest.param([A, DATA], [A, DATA], [A, DATA, "far/t/ab"], [A], id="both, and a neighbour"),
]


@pytest.mark.parametrize(("diverged", "sent", "there", "expected"), PLANS)
def test_plan(diverged: list[str], sent: list[str], there: list[str], expected: list[str]) -> None:
    assert divergence.plan(diverged, common(*sent), branch(*there)) == expected


def test_what_belongs_to_somebody_else_is_not_renamed() -> None:
    with pytest.raises(SendRefused, match="holds far/t/a/other, which is not sent"):
        divergence.plan([A], common(A, DATA), branch(A, DATA, OTHER))


def test_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def note(verb: str) -> None:
        def called(*words: object) -> None:
            *told, far = words
            assert far is NAS
            calls.append(" ".join([verb, *map(str, told)]))

        monkeypatch.setattr(zfs, verb, called)

    for verb in ("rename", "clone", "promote"):
        note(verb)
    divergence.set_aside([A], common(A, DATA, "far/t/ab"), branch(A, DATA), "T", NAS)
    assert calls == [
        "rename far/t/a far/t/a.before-T",
        "clone far/t/a.before-T@s1 far/t/a {'readonly': 'on', 'canmount': 'noauto'}",
        "promote far/t/a",
        "clone far/t/a.before-T/data@s1 far/t/a/data {'readonly': 'on'}",
        "promote far/t/a/data",
    ]
