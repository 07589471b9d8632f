"""Chains are merged by the real qemu-img; libvirt's part is that of the fake guest."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import holds, run_qemu_img
from zvmsnap.common.errors import (
    CommitFailed,
    FlattenFailed,
    FlattenImpossible,
    LibvirtFailed,
    LockTimeout,
    QemuImgFailed,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import qemu_img
from zvmsnap.flatten import run
from zvmsnap.flatten.method import Method
from zvmsnap.flatten.plan import plan
from zvmsnap.flatten.work import Flattening, Flattenings
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.recovery.recover import recover_guests
from zvmsnap.recovery.report import Result
from zvmsnap.recovery.unfinished import Unfinished, unfinished
from zvmsnap.virt.guest_state import BlockJob

Chained = Callable[..., list[str]]
COMMIT, PULL = Method.COMMIT, Method.PULL


def flatten(config: Config, host: FakeHost, guest: FakeGuest, method: Method) -> None:
    run.flatten(config, host, guest, plan(host, guest, method))


def content(image: str, tmp_path: Path) -> bytes:
    run_qemu_img("convert", "-O", "raw", image, tmp_path / "content")
    return (tmp_path / "content").read_bytes()


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("method", Method)
def test_four_images_become_one(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    chained: Chained,
    tmp_path: Path,
    method: Method,
    is_on: bool,
) -> None:
    images, others = chained(), chained("vdb")
    before = content(images[0], tmp_path)
    guest.active = is_on
    flatten(config, host, guest, method)
    result = images[3] if method is COMMIT else images[0]
    assert guest.persistent == {
        "vda": result,
        "vdb": others[3] if method is COMMIT else others[0],
    }
    assert not is_on or guest.live == guest.persistent
    if method is COMMIT:
        assert all(holds(Path(result), number, 64 * number) for number in (1, 2, 3))
    else:
        assert [layer.path for layer in qemu_img.chain(result)] == [result]
        assert content(result, tmp_path) == before
    assert Flattenings(config.journal_dir).all() == ([], [])
    assert plan(host, guest, method).chains == {}
    # The others' files are theirs.
    assert all(map(os.path.exists, images))


def test_how_far_it_is(
    host: FakeHost, guest: FakeGuest, chained: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained()
    chained("vdb")
    planned = plan(host, guest, PULL)
    jobs = {"vda": BlockJob("pull", 1 << 20, 4 << 20)}
    monkeypatch.setattr(guest, "block_job", jobs.get)
    assert run.how_far(guest, planned) == "web: pull: vda 25 % of 4 MiB"
    jobs.clear()
    assert run.how_far(guest, planned) == "web: pull: at its end"


def note(config: Config, guest: FakeGuest, method: Method, owner: Process) -> None:
    work = Flattening(domain="web", uuid=guest.uuid, owner=owner, method=method, targets=("vda",))
    Flattenings(config.journal_dir).write(work)


@pytest.mark.parametrize("method", Method)
def test_recover_ends_the_job_that_was_left(
    config: Config, host: FakeHost, guest: FakeGuest, chained: Chained, method: Method
) -> None:
    images = chained()
    if method is COMMIT:
        guest.block_commit("vda", images[3])
    else:
        guest.pulls.add("vda")
    note(config, guest, method, Process.of(os.getpid()))
    assert recover_guests(config).outcomes == []
    (told,) = unfinished(config)
    assert told.is_under_way and told.words.startswith("web: flatten of vda is under way (pid ")
    note(config, guest, method, Process.none())
    assert list(unfinished(config, "web")) == [
        Unfinished("web: flatten of vda was interrupted: zvmsnap recover ends it")
    ]
    (outcome,) = recover_guests(config, dry_run=True).outcomes
    assert outcome.result is Result.NEEDED and guest.block_job("vda")
    (outcome,) = recover_guests(config, "web").outcomes
    assert (outcome.result, outcome.findings) == (
        Result.RECOVERED,
        ("flatten of vda was interrupted",),
    )
    assert guest.block_job("vda") is None and guest.live["vda"] == images[0]
    assert Flattenings(config.journal_dir).all() == ([], [])
    flatten(config, host, guest, method)


def test_a_job_of_somebody_else_stays(
    config: Config, host: FakeHost, guest: FakeGuest, chained: Chained
) -> None:
    chained()
    guest.block_jobs.add("vda")
    note(config, guest, COMMIT, Process.none())
    recover_guests(config)
    assert guest.block_job("vda") and "abort vda" not in guest.calls


def test_a_guest_that_is_gone_leaves_no_note(
    config: Config, host: FakeHost, guest: FakeGuest, chained: Chained
) -> None:
    work = Flattening(
        domain="w9",
        uuid="c0ffee00-0000-4000-8000-000000000009",
        owner=Process.none(),
        method=PULL,
        targets=("vda",),
    )
    Flattenings(config.journal_dir).write(work)
    (outcome,) = recover_guests(config).outcomes
    assert outcome.result is Result.RECOVERED and Flattenings(config.journal_dir).all() == ([], [])


def test_a_failure_ends_the_job(
    config: Config, host: FakeHost, guest: FakeGuest, chained: Chained
) -> None:
    images = chained()

    def refuse() -> None:
        raise LibvirtFailed("web: pivot of vda: refused")

    guest.at["pivot vda"] = refuse
    with pytest.raises(CommitFailed, match="refused"):
        flatten(config, host, guest, COMMIT)
    assert guest.calls == ["commit vda", "pivot vda", "abort vda"]
    assert guest.live["vda"] == images[0] and Flattenings(config.journal_dir).all() == ([], [])


def test_a_pull_that_ends_without_having_pulled(
    config: Config, host: FakeHost, guest: FakeGuest, chained: Chained
) -> None:
    images = chained()
    guest.at["block_job"] = lambda: guest.at.update(block_job=lambda: guest.pulls.clear())
    with pytest.raises(FlattenFailed, match="its pull ended, but it is on other images still"):
        flatten(config, host, guest, PULL)
    assert guest.live["vda"] == images[0]


def test_off_and_killed_in_the_middle(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    chained: Chained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every step the guest reads the same through its chain; the same command goes on."""
    images = chained()
    before = content(images[0], tmp_path)
    guest.active = False
    merge = qemu_img.merge_down
    done: list[str] = []

    def dying(overlay: str) -> None:
        if len(done) == 2:
            raise QemuImgFailed("killed")
        done.append(overlay)
        merge(overlay)

    with monkeypatch.context() as patch:
        patch.setattr(qemu_img, "merge_down", dying)
        with pytest.raises(QemuImgFailed):
            flatten(config, host, guest, COMMIT)
    assert done == images[:2] and guest.persistent["vda"] == images[0]
    assert content(images[0], tmp_path) == before
    flatten(config, host, guest, COMMIT)
    assert guest.persistent["vda"] == images[3] and content(images[3], tmp_path) == before


def test_a_damaged_note_is_told(config: Config, host: FakeHost) -> None:
    path = config.journal_dir / "flattenings" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    (problem,) = recover_guests(config).problems
    assert str(path) in problem and path.exists()
    assert [each.words for each in unfinished(config)] == [problem]


def test_what_is_under_way_on_the_guest(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    chained: Chained,
    entry: Callable[..., Entry],
) -> None:
    chained()
    planned = plan(host, guest, COMMIT)
    quick = Config(journal=config.journal, locks=config.locks, limits=Limits(lock_timeout_s=0.01))
    with (
        lock(config.locks_dir, guest.uuid, "capture web", 1),
        pytest.raises(LockTimeout, match="capture web"),
    ):
        run.flatten(quick, host, guest, planned)
    open_entry = entry(uuid=guest.uuid)
    Journal(config.journal_dir).write(open_entry)
    with pytest.raises(FlattenImpossible, match="a snapshot run is under way"):
        run.flatten(config, host, guest, planned)
    Journal(config.journal_dir).close(open_entry)
    guest.live["vda"] = planned.chains["vda"].overlays[1]
    with pytest.raises(FlattenImpossible, match="its images changed meanwhile"):
        run.flatten(config, host, guest, planned)
    assert guest.calls == []
