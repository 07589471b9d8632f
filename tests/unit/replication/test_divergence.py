import pytest

from zvmsnap.common.errors import SendRefused
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.replication import divergence
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, Subtree

NAS = RemoteHost("nas")
A, DATA, OTHER = "backup/t/a", "backup/t/a/data", "backup/t/a/other"


def common(*datasets: str) -> dict[str, Snapshot]:
    return {dataset: Snapshot(dataset, "s1", 1, 1) for dataset in datasets}


def subtree(*datasets: str) -> Subtree:
    return Subtree(frozenset(datasets), {}, frozenset({A, OTHER}))


PLANS = [
    pytest.param([], [A, DATA], [A, DATA], [], id="nothing"),
    pytest.param([A], [A, DATA], [A, DATA], [A], id="what is below goes along"),
    pytest.param([DATA], [A, DATA], [A, DATA], [DATA], id="only what is below"),
    pytest.param([A, DATA], [A, DATA], [A, DATA, "backup/t/ab"], [A], id="both, and a neighbour"),
]


@pytest.mark.parametrize(("diverged", "sent", "existing", "expected"), PLANS)
def test_plan(
    diverged: list[str], sent: list[str], existing: list[str], expected: list[str]
) -> None:
    assert divergence.plan(diverged, common(*sent), subtree(*existing)) == expected


def test_dataset_that_is_not_sent_is_not_renamed() -> None:
    with pytest.raises(SendRefused, match="and backup/t/a/other below it, which is not sent"):
        divergence.plan([A], common(A, DATA), subtree(A, DATA, OTHER))


def test_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def note(verb: str) -> None:
        def called(*words: object) -> None:
            *arguments, remote = words
            assert remote is NAS
            calls.append(" ".join([verb, *map(str, arguments)]))

        monkeypatch.setattr(zfs, verb, called)

    for verb in ("rename", "clone", "promote"):
        note(verb)
    divergence.rename_away([A], common(A, DATA, "backup/t/ab"), subtree(A, DATA), "T", NAS)
    assert calls == [
        "rename backup/t/a backup/t/a.before-T",
        "clone backup/t/a.before-T@s1 backup/t/a {'readonly': 'on', 'canmount': 'noauto'}",
        "promote backup/t/a",
        "clone backup/t/a.before-T/data@s1 backup/t/a/data {'readonly': 'on'}",
        "promote backup/t/a/data",
    ]
