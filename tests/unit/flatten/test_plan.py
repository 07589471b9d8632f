import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_overlay, run_qemu_img
from zvmsnap.common.errors import FlattenImpossible
from zvmsnap.disks import staging
from zvmsnap.flatten.method import Method
from zvmsnap.flatten.plan import FlattenPlan, plan
from zvmsnap.virt.domain_xml import Metadata

Chained = Callable[..., list[str]]
COMMIT, PULL = Method.COMMIT, Method.PULL


def refused(host: FakeHost, guest: FakeGuest, method: Method, why: str) -> None:
    with pytest.raises(FlattenImpossible, match=why):
        plan(host, guest, method)


@pytest.mark.parametrize("is_on", [True, False])
def test_a_chain(host: FakeHost, guest: FakeGuest, chained: Chained, is_on: bool) -> None:
    """libvirt tells the chain of a guest that runs; else the headers do."""
    images = chained()
    guest.active = is_on
    planned = plan(host, guest, COMMIT)
    assert list(planned.chains) == ["vda"]
    chain = planned.chains["vda"]
    assert ([*chain.overlays, chain.base], planned.result("vda")) == (images, images[3])
    assert planned.superfluous("vda") == tuple(images[:3])
    planned = plan(host, guest, PULL)
    assert planned.result("vda") == images[0]
    assert planned.superfluous("vda") == tuple(images[1:])


def test_disks_that_are_on_no_chain(host: FakeHost, guest: FakeGuest, chained: Chained) -> None:
    run_qemu_img("create", "-q", "-f", "qcow2", f"{guest.live['vda']}.qcow2", "1M")
    guest.live["vda"] = guest.persistent["vda"] = f"{guest.live['vda']}.qcow2"
    assert plan(host, guest, COMMIT) == FlattenPlan(COMMIT, {})
    chained("vdb")
    assert list(plan(host, guest, COMMIT).chains) == ["vdb"]
    assert list(plan(host, guest, COMMIT, ["vda"]).chains) == []
    with pytest.raises(FlattenImpossible, match="has no disk vdz"):
        plan(host, guest, COMMIT, ["vda", "vdz"])


def test_an_overlay_of_ours(
    host: FakeHost, guest: FakeGuest, chained: Chained, tmp_path: Path
) -> None:
    chained()
    own = tmp_path / f"{guest.uuid}.00000001" / "vda.zvmsnap.qcow2"
    guest.on_overlay("vda", own)
    refused(host, guest, COMMIT, "an overlay of zvmsnap: zvmsnap recover")
    guest.on_overlay("vda", tmp_path / "above")
    refused(host, guest, PULL, "an overlay of zvmsnap: zvmsnap recover")


def test_what_libvirt_knows_of_the_chain(
    host: FakeHost, guest: FakeGuest, chained: Chained
) -> None:
    images = chained()
    guest.snapshots = ["other", "nightly"]
    guest.snapshot_images = {"nightly": frozenset({images[2]}), "other": frozenset({"/x"})}
    for method in Method:
        refused(host, guest, method, "snapshot nightly names .*--metadata web nightly makes")
    guest.snapshots = ["other"]
    guest.checkpoints = [Metadata("c1", 0, {"vdb": "c1"}), Metadata("c2", 0, {"vda": "c2"})]
    refused(host, guest, COMMIT, "checkpoint c2 of a backup is on vda: virsh checkpoint-delete")
    guest.checkpoints = guest.checkpoints[:1]
    assert plan(host, guest, COMMIT).chains


def test_an_image_of_others_is_not_committed_to(
    guest: FakeGuest, chained: Chained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A golden image for instance; a pull only reads it."""
    images = chained()
    clone = tmp_path / "clone.qcow2"
    make_overlay(clone, Path(images[3]))
    other = FakeGuest("w2", "c0ffee00-0000-4000-8000-000000000002", vda=clone)
    other.active = False
    both = FakeHost(guest, other)
    both.install(monkeypatch)
    refused(both, guest, COMMIT, f"vda: w2 is on {images[3]}, too, .*--method pull")
    assert plan(both, guest, PULL).chains


def test_two_disks_on_one_base(
    host: FakeHost, guest: FakeGuest, chained: Chained, tmp_path: Path
) -> None:
    images = chained()
    guest.live["vdb"] = guest.persistent["vdb"] = images[3]
    guest.on_overlay("vdb", tmp_path / "b.qcow2")
    refused(host, guest, COMMIT, "its disk vdb is on")
    assert list(plan(host, guest, PULL).chains) == ["vda", "vdb"]


def test_too_little_room(
    host: FakeHost, guest: FakeGuest, chained: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained()
    monkeypatch.setattr(staging, "free_bytes", lambda folder: 100 << 10)
    refused(host, guest, COMMIT, "has 0 MiB free, and the merged image may grow")


def test_formats(host: FakeHost, guest: FakeGuest, tmp_path: Path) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", base, "1M"], check=True)
    make_overlay(top, base, "vmdk")
    guest.live["vda"], guest.below[str(top)] = str(top), str(base)
    refused(host, guest, COMMIT, "images of formats qcow2, vmdk: not merged")


def test_libvirt_and_the_headers_differ(host: FakeHost, guest: FakeGuest, chained: Chained) -> None:
    images = chained()
    del guest.below[images[2]]
    refused(host, guest, COMMIT, "name other chains")
