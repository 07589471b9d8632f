"""Page images on this machine: an image that is made up, and who reads and writes as much."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bench import images, native, synthetic

from tests.unit.ram.page_files import apart, loaded
from tests.unit.ram.streams import load

MIB = 1 << 20


def test_what_is_made_up_is_an_image_of_half_zeros(tmp_path: Path) -> None:
    path = tmp_path / "image"
    synthetic.write(path, 4, seed=1)
    image = path.read_bytes()
    ram = load(image).blocks["pc.ram"]
    pages = [ram[at : at + 4096] for at in range(0, len(ram), 4096)]
    assert len(pages) == 1024
    assert 200 < pages.count(bytes(4096)) < 800
    assert len(set(pages)) == 1025 - pages.count(bytes(4096))
    taken = apart(image, tmp_path / "point")
    assert loaded(tmp_path / "point", taken) == load(image)
    synthetic.write(tmp_path / "again", 4, seed=1)
    assert (tmp_path / "again").read_bytes() == image


def test_measures_each_way_in_the_product_of_this_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "BUILD", tmp_path)
    found = native.measure(2, warm=False, ram_mib=2).figures
    size_mib = found.pop(native.IMAGE)["size_mib"][0]
    assert 0.2 < size_mib < 2.2
    ours = {"took_s", "cpu_s", "peak_mib"}
    assert {way: set(figures) for way, figures in found.items()} == {
        images.SHA256SUM: {"took_s", "cpu_s"},
        native.APART: ours,
        images.REBUILT: ours,
        images.COPY: {"took_s", "cpu_s"},
        native.SYNCED_COPY: {"took_s", "cpu_s"},
    }
    assert {len(each) for figures in found.values() for each in figures.values()} == {2}
    assert min(found[native.APART]["took_s"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "BUILD", tmp_path)
    monkeypatch.setattr(synthetic, "write", lambda path, ram_mib, seed: path.write_bytes(b"no RAM"))
    with pytest.raises(subprocess.CalledProcessError):
        native.measure(1, warm=False)
    assert list(tmp_path.iterdir()) == []


def test_conditions_are_this_machine_s() -> None:
    said = native.conditions()
    assert "sha256sum" in said["natively, sha256sum"]
    assert said["natively, file system"] and said["natively, Python"].startswith("3.")
