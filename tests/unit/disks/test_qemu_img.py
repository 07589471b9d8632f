import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.images import SIZE, holds, make_base, make_overlay, run_qemu_img, write
from zvmsnap.common.errors import OverlayUnreadable, QemuImgFailed, ZvmsnapError
from zvmsnap.disks import qemu_img
from zvmsnap.disks.qemu_img import Layer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tank" / "a & <b>.raw")


@pytest.fixture
def overlay(tmp_path: Path, base: Path) -> Path:
    return make_overlay(tmp_path / "staging" / "vda.zvmsnap.qcow2", base)


def test_chain(tmp_path: Path, base: Path, overlay: Path) -> None:
    assert qemu_img.chain(str(overlay)) == (Layer(str(overlay), "qcow2"), Layer(str(base), "raw"))
    top = make_overlay(tmp_path / "top.qcow2", overlay, "qcow2")
    assert [layer.path for layer in qemu_img.chain(str(top))] == [
        str(top),
        str(overlay),
        str(base),
    ]
    lone = tmp_path / "lone.qcow2"
    run_qemu_img("create", "-f", "qcow2", lone, "1M")
    assert qemu_img.chain(str(lone)) == (Layer(str(lone), "qcow2"),)


def test_relative_backing_file_has_its_whole_path(tmp_path: Path, base: Path) -> None:
    shutil.copy(base, tmp_path / "beside.raw")
    top = tmp_path / "top.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "beside.raw", "top.qcow2"],
        cwd=tmp_path,
        check=True,
    )
    assert [layer.path for layer in qemu_img.chain(str(top))] == [
        str(top),
        str(tmp_path / "beside.raw"),
    ]


def rebase(image: Path, backing: str, kind: str = "raw") -> None:
    """Name another backing file in the header, without a look at it."""
    run_qemu_img("rebase", "-u", "-f", "qcow2", "-F", kind, "-b", backing, image)


def missing(overlay: Path, base: Path) -> None:
    base.unlink()


def cut_short(overlay: Path, base: Path) -> None:
    overlay.write_bytes(overlay.read_bytes()[:50])


def no_image(overlay: Path, base: Path) -> None:
    overlay.write_bytes(b"\xff\xfe no image at all")


def gone(overlay: Path, base: Path) -> None:
    overlay.unlink()


def loop(overlay: Path, base: Path) -> None:
    rebase(overlay, str(overlay), "qcow2")


def folder(overlay: Path, base: Path) -> None:
    rebase(overlay, str(base.parent))


def json_of_nowhere(overlay: Path, base: Path) -> None:
    rebase(overlay, 'json:{"driver":"null-co","size":1048576}')


def json_without_driver(overlay: Path, base: Path) -> None:
    rebase(overlay, "json:{}")


def json_of_two(overlay: Path, base: Path) -> None:
    drivers = {"driver": "blkverify", "test": {"driver": "file", "filename": str(base)}}
    drivers["raw"] = drivers["test"]
    rebase(overlay, "json:" + json.dumps(drivers))


@pytest.mark.parametrize(
    "deface",
    [
        missing,
        cut_short,
        no_image,
        gone,
        loop,
        folder,
        json_of_nowhere,
        json_without_driver,
        json_of_two,
    ],
)
def test_backing_files_that_cannot_be_read(
    overlay: Path, base: Path, deface: Callable[[Path, Path], None]
) -> None:
    write(overlay, 7)
    deface(overlay, base)
    before = base.read_bytes() if base.exists() else b""
    with pytest.raises(OverlayUnreadable, match=str(overlay)):
        qemu_img.chain(str(overlay))
    with pytest.raises((OverlayUnreadable, QemuImgFailed)):
        qemu_img.merge_down(str(overlay))
    assert (base.read_bytes() if base.exists() else b"") == before


def test_json_that_names_a_plain_file_is_that_file(overlay: Path, base: Path) -> None:
    said = {"driver": "raw", "file": {"driver": "file", "filename": str(base)}}
    rebase(overlay, "json:" + json.dumps(said))
    assert qemu_img.chain(str(overlay))[1].path == str(base)


def in_use(image: Path) -> subprocess.Popen[str]:
    """Another process that has the image open for writing, as a running guest has."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("length\n")
    process.stdin.flush()
    process.stdout.read(1)
    return process


def test_image_in_use_can_be_looked_at_but_not_merged(overlay: Path, base: Path) -> None:
    with in_use(overlay) as process:
        try:
            assert len(qemu_img.chain(str(overlay))) == 2
            with pytest.raises(QemuImgFailed, match="another process"):
                qemu_img.holds_nothing(str(overlay))
            with pytest.raises(QemuImgFailed, match="another process"):
                qemu_img.merge_down(str(overlay))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("command", "nothing"),
    [
        pytest.param(None, True, id="untouched"),
        pytest.param("write -P 7 512k 64k", False, id="written"),
        pytest.param("write -z 0 64k", False, id="zeros"),
        pytest.param("write -z -u 0 64k", False, id="zeros, unmapped"),
        pytest.param("discard 0 64k", False, id="discarded"),
        pytest.param("read 0 64k", True, id="only read"),
    ],
)
def test_holds_nothing(overlay: Path, base: Path, command: str | None, nothing: bool) -> None:
    # Over data, so that a zero in the overlay differs from the data of the base.
    base.write_bytes(b"\7" * SIZE)
    if command:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, overlay], check=True)
    assert qemu_img.holds_nothing(str(overlay)) is nothing


def test_writes_to_a_lower_overlay_are_not_those_of_the_upper(
    tmp_path: Path, overlay: Path
) -> None:
    write(overlay, 7)
    top = make_overlay(tmp_path / "top.qcow2", overlay, "qcow2")
    assert qemu_img.holds_nothing(str(top))
    assert not qemu_img.holds_nothing(str(overlay))


@pytest.mark.parametrize("deface", [missing, cut_short, no_image, gone])
def test_an_unreadable_overlay_never_counts_as_empty(
    overlay: Path, base: Path, deface: Callable[[Path, Path], None]
) -> None:
    deface(overlay, base)
    with pytest.raises(QemuImgFailed):
        qemu_img.holds_nothing(str(overlay))


def test_merge_down_may_be_repeated(overlay: Path, base: Path) -> None:
    write(overlay, 7, at_kib=128)
    for _ in range(2):
        qemu_img.merge_down(str(overlay))
        assert holds(base, 7, at_kib=128)
        assert holds(base, 0)
        assert overlay.exists()
    assert not qemu_img.holds_nothing(str(overlay))


def test_merge_goes_one_down_and_no_further(tmp_path: Path, overlay: Path, base: Path) -> None:
    top = make_overlay(tmp_path / "top.qcow2", overlay, "qcow2")
    write(top, 9)
    qemu_img.merge_down(str(top))
    assert holds(base, 0)
    qemu_img.merge_down(str(overlay))
    assert holds(base, 9)


def test_merge_of_an_image_without_a_backing_file(tmp_path: Path) -> None:
    lone = tmp_path / "lone.qcow2"
    run_qemu_img("create", "-f", "qcow2", lone, "1M")
    with pytest.raises(QemuImgFailed, match="has no image below it"):
        qemu_img.merge_down(str(lone))


# Without any extent the answer is False, not an error.
NO_EXTENTS = [("echo '{}'", qemu_img.holds_nothing), ("echo '[]'", qemu_img.holds_nothing)]


@pytest.mark.parametrize(
    "says",
    [
        pytest.param("echo '[]'", id="an empty list"),
        pytest.param("echo no JSON", id="text"),
        pytest.param("echo '{}'", id="an object"),
        pytest.param("echo '[{}]'", id="an object without names"),
        pytest.param("echo '[1]'", id="numbers"),
        pytest.param("printf '\\377\\376'", id="no text"),
        pytest.param("true", id="nothing"),
        pytest.param("echo 'qemu-img: no such thing' >&2; exit 1", id="failure"),
        pytest.param("printf '\\377' >&2; exit 1", id="failure that is no text"),
        pytest.param("kill -9 $$", id="killed"),
    ],
)
@pytest.mark.parametrize("ask", [qemu_img.chain, qemu_img.holds_nothing, qemu_img.merge_down])
def test_an_answer_of_another_kind_is_an_error_of_zvmsnap(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    ask: Callable[[str], object],
) -> None:
    program = tmp_path / "qemu-img"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        assert ask("/staging/vda.zvmsnap.qcow2") is False
    except ZvmsnapError:
        return
    assert (says, ask) in NO_EXTENTS


@pytest.mark.parametrize("ask", [qemu_img.chain, qemu_img.holds_nothing, qemu_img.merge_down])
def test_no_qemu_img(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ZvmsnapError, match="is qemu-utils installed"):
        ask("/staging/vda.zvmsnap.qcow2")
