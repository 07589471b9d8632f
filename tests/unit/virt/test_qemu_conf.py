from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.virt.qemu_conf import gives_files_to_qemu, why_unloadable

SPARSE = 'snapshot_image_format = "sparse"'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(SPARSE, "sparse", id="sparse"),
        pytest.param('snapshot_image_format = "lz4"\n', "lz4", id="lz4"),
        pytest.param('a = 1\n\tsnapshot_image_format="sparse"  # fast\n', "sparse", id="spaces"),
        pytest.param("snapshot_image_format = 'sparse'", "sparse", id="single quotes"),
        pytest.param('snapshot_image_format = """sparse"""', "sparse", id="triple quotes"),
        pytest.param(f"a = 1\r\n{SPARSE}\r\n", "sparse", id="lines as of Windows"),
        pytest.param(f'{SPARSE}\nsnapshot_image_format = "raw"', "sparse", id="the first counts"),
        pytest.param(f'snapshot_image_format = "raw"\n{SPARSE}', "", id="the first counts, too"),
        pytest.param('snapshot_image_format = "raw"', "", id="raw"),
        pytest.param('snapshot_image_format = "zstd"', "", id="compressed"),
        pytest.param(f"#{SPARSE}", "", id="comment"),
        pytest.param(f"# see {SPARSE}", "", id="within a comment"),
        pytest.param('save_image_format = "sparse"', "", id="another key"),
        pytest.param("snapshot_image_format = sparse", "", id="no string"),
        pytest.param('snapshot_image_format =\n"sparse"', "", id="no value"),
        pytest.param("", "", id="empty"),
    ],
)
def test_why_unloadable(tmp_path: Path, text: str, value: str) -> None:
    path = tmp_path / "qemu.conf"
    path.write_bytes(text.encode())
    why = why_unloadable(path)
    assert bool(why) is bool(value)
    if why:
        assert why.startswith(f'{path} sets snapshot_image_format = "{value}": ')
        assert why.endswith('; set it to "raw" and restart libvirtd (or virtqemud)')
        assert "\n" not in why


def test_nothing_to_read(tmp_path: Path) -> None:
    assert why_unloadable(tmp_path / "missing.conf") is None
    assert why_unloadable(tmp_path) is None


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qemuconf") / "qemu.conf"


@given(before=st.binary(), after=st.binary())
def test_any_bytes_around_it(conf: Path, before: bytes, after: bytes) -> None:
    before = before.replace(b"snap", b"")
    conf.write_bytes(before + b"\n" + SPARSE.encode() + b"\n" + after)
    assert why_unloadable(conf)


@pytest.mark.parametrize(
    ("text", "gives"),
    [
        ("dynamic_ownership = 0", False),
        ("a = 1\n\tdynamic_ownership=0 # fast\n", False),
        ("dynamic_ownership = 0\ndynamic_ownership = 1", False),
        ("dynamic_ownership = 1", True),
        ("#dynamic_ownership = 0", True),
        ("remember_owner = 0", True),
        ("", True),
    ],
)
def test_gives_files_to_qemu(tmp_path: Path, text: str, gives: bool) -> None:
    path = tmp_path / "qemu.conf"
    assert gives_files_to_qemu(path)
    path.write_text(text)
    assert gives_files_to_qemu(path) is gives
