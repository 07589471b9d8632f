"""Guests to whose QEMU libvirt gives no files: dynamic_ownership = 0 in qemu.conf."""

import os
from pathlib import Path

import pytest

from tests.fakes.capture_scene import CRASH, MEMORY, QUIESCED, Scene, failing
from tests.fakes.guest import DumpedGuest
from tests.fakes.images import run_qemu_img
from zvmsnap.disks import own_overlays, qemu_img
from zvmsnap.virt import qemu_conf

LABEL = "<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+108</label></seclabel>"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """To whom files were given, by their names."""
    monkeypatch.setattr(qemu_conf, "gives_files_to_qemu", lambda: False)
    owners: dict[str, tuple[int, int]] = {}

    def chown(path: str, uid: int, gid: int) -> None:
        owners[Path(path).name] = (uid, gid)

    monkeypatch.setattr(os, "chown", chown)
    return owners


@pytest.fixture
def lone(scene: Scene) -> DumpedGuest:
    guest = scene.add()
    guest.metadata = LABEL
    base = Path(guest.live["vda"]).with_suffix(".qcow2")
    run_qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    guest.live["vda"] = guest.persistent["vda"] = str(base)
    return guest


@pytest.mark.parametrize("mode", ["memory", "quiesced"])
def test_its_overlays_are_made_for_it(
    scene: Scene, lone: DumpedGuest, given: dict[str, tuple[int, int]], mode: str
) -> None:
    scene.change(quiesce_overlay=True)
    base = lone.live["vda"]
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre()
    (entry,) = scene.entries()
    assert entry.level is {"memory": MEMORY, "quiesced": QUIESCED}[mode]
    assert given == {"vda.zvmsnap.qcow2": (64055, 108)}
    assert lone.reused
    (overlay,) = (disk.overlay for disk in entry.disks)
    assert [layer.path for layer in qemu_img.chain(overlay)] == [overlay, base]


@pytest.mark.parametrize("call", ["snapshot", "disk snapshot"])
def test_overlays_that_libvirt_did_not_use_are_removed(
    scene: Scene, lone: DumpedGuest, given: dict[str, tuple[int, int]], call: str
) -> None:
    scene.change(quiesce_overlay=True)
    scene.modes["tank/web"] = {"": "memory,crash" if call == "snapshot" else "quiesced,crash"}
    lone.at[call] = failing("no")
    assert scene.pre()
    (entry,) = scene.entries()
    assert (entry.level, len(given)) == (CRASH, 1)
    scene.assert_at_rest(entry)


@pytest.mark.parametrize("mode", ["memory", "quiesced"])
def test_without_knowing_its_user(
    scene: Scene, lone: DumpedGuest, given: dict[str, tuple[int, int]], mode: str
) -> None:
    scene.change(quiesce_overlay=True)
    lone.metadata = ""
    scene.modes["tank/web"] = {"": f"{mode},crash"}
    assert scene.pre()
    (entry,) = scene.entries()
    assert (entry.level, given, lone.calls) == (CRASH, {}, [])
    assert entry.reason == (
        "QEMU could not open its overlays: libvirt gives it no files (dynamic_ownership "
        "in qemu.conf), and its definition does not say as which user QEMU runs"
    )


# -- guests to whose QEMU libvirt gives files


def test_overlays_are_on_disk_before_ram_is_dumped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is not paused for that; libvirt gives them to QEMU's user."""
    flushed: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append((Path(path).name, os.stat(path).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "chown", None)
    guest = scene.add()
    scene.modes["tank/web"] = {"": "memory"}
    seen: list[list[str]] = []
    guest.at["snapshot"] = lambda: seen.append([name for name, size in flushed if size])
    assert scene.pre()
    (entry,) = scene.entries()
    assert (entry.level, guest.reused) == (MEMORY, True)
    assert "vda.zvmsnap.qcow2" in seen[0]
    assert Path(entry.disks[0].overlay).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", ["paused", "quiesced"])
def test_no_overlays_of_a_guest_that_needs_none(scene: Scene, mode: str) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre()
    assert not guest.reused
    assert not list(scene.config.staging_dir.rglob("*.qcow2"))


def test_a_file_that_is_in_the_way_is_not_overwritten(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay, base = tmp_path / "vda.zvmsnap.qcow2", tmp_path / "base"
    run_qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    overlay.write_text("somebody's writes")
    with pytest.raises(FileExistsError):
        own_overlays.make({str(overlay): qemu_img.Layer(str(base), "qcow2")}, None)
    assert overlay.read_text() == "somebody's writes"
    overlay.unlink()
    overlay.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        own_overlays.make({str(overlay): qemu_img.Layer(str(base), "qcow2")}, None)
    assert not (tmp_path / "elsewhere").exists()


def test_overlays_that_cannot_be_made_are_a_failure_of_the_level(scene: Scene) -> None:
    guest = scene.add()
    guest.live["vda"] = guest.persistent["vda"] = str(scene.root / "tank/web/gone.raw")
    scene.modes["tank/web"] = {"": "memory,crash"}
    assert scene.pre()
    (entry,) = scene.entries()
    assert entry.level is CRASH
    assert entry.reason and entry.reason.startswith("dump: qemu-img info: ")
    assert "snapshot" not in guest.calls
    scene.assert_at_rest(entry)
