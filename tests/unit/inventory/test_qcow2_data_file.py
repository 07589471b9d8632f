"""Where the data of a qcow2 image is, by its header; qemu-img makes the images."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.inventory.qcow2 import data_file


def make(path: Path, *options: str, image_format: str = "qcow2") -> str:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", image_format, *options, str(path), "1M"],
        check=True,
        cwd=path.parent,
    )
    return str(path)


def test_the_data_is_in_another_file(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.raw"
    image = make(tmp_path / "a.qcow2", "-o", f"data_file={other},data_file_raw=on")
    assert data_file(image) == str(other)


def test_a_name_without_a_directory_is_beside_the_image(tmp_path: Path) -> None:
    below = make(tmp_path / "b.qcow2")
    image = make(tmp_path / "a.qcow2", "-b", below, "-F", "qcow2", "-o", "data_file=a.raw")
    assert data_file(image) == str(tmp_path / "a.raw")


@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10")])
def test_the_data_is_in_the_image(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert data_file(make(tmp_path / "a.qcow2", *options)) == ""


def test_what_is_no_qcow2(tmp_path: Path) -> None:
    assert data_file(make(tmp_path / "a.raw", image_format="raw")) == ""
    (tmp_path / "short").write_bytes(b"QFI\xfb\0\0")
    assert data_file(str(tmp_path / "short")) == ""
    with pytest.raises(FileNotFoundError):
        data_file(str(tmp_path / "none"))


def test_a_name_that_no_file_has(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    make(image, "-o", f"data_file={tmp_path / 'elsewhere.raw'}")
    image.write_bytes(image.read_bytes().replace(b"elsewhere", b"else\0here"))
    with pytest.raises(ValueError, match="NUL"):
        data_file(str(image))


@given(st.binary(max_size=600))
def test_any_header_is_read(tmp_path_factory: pytest.TempPathFactory, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.qcow2"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + rest)
    with suppress(ValueError):
        assert isinstance(data_file(str(path)), str)
