"""What `zfs` prints is read as it was meant, whatever bytes a value holds."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import programs

NAMES = ("zvmsnap:mode", "mountpoint")
DATASETS = ("tank/a", "tank/b c")
Values = Mapping[tuple[str, str], bytes]
# Pieces of other lines are more than chance would find.
PIECES = (b"\n", b"\t", b"\r", b"tank/a", b"mountpoint", b"local", b"-", b"zvmsnap:", b"\xff", b"x")
VALUES = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(
    lambda pieces: b"".join(pieces).replace(b"\0", b"")
)


def printed(words: tuple[str, ...], values: Values) -> bytes:
    """As zprop_print_one_property prints it: a value as it is."""
    asked = words[words.index("-o") + 2].split(",")
    lines = []
    for dataset in DATASETS:
        for name in asked:
            value = values.get((dataset, name))
            source = b"-" if value is None else b"local"
            cells = (name.encode(), dataset.encode(), source, b"-" if value is None else value)
            lines.append(b"\t".join(cells) + b"\n")
    return b"".join(lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.tuples(st.sampled_from(DATASETS), st.sampled_from(NAMES)), VALUES))
@example(values={("tank/a", "zvmsnap:mode"): b"\n\nmountpoint\ttank/b c\tlocal\t/evil\n"})
def test_a_value_is_that_of_its_property(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "output", lambda *words, **_how: printed(words, values))
    for each in programs.properties(NAMES):
        value = values.get((each.dataset, each.name))
        assert each.source == ("-" if value is None else "local")
        assert os.fsencode(each.value) == (b"-" if value is None else value)
    order = [(each.dataset, each.name) for each in programs.properties(NAMES)]
    assert order == [(dataset, name) for dataset in DATASETS for name in NAMES]


@pytest.mark.parametrize("line", ["a\tb\tc", "a", ""])
def test_another_number_of_columns_is_nothing_to_guess_from(line: str) -> None:
    with pytest.raises(ZfsFailed, match="columns, not 2"):
        programs.lines(f"x\ty\n{line}\n", 2)


@pytest.fixture
def zfs_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A `zfs` that lists one dataset, complains, and exits with 1."""
    program = tmp_path / "zfs"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def says(complaint: str) -> None:
        program.write_text(f"#!/bin/sh\necho tank/a\ncat >&2 <<'END'\n{complaint}\nEND\nexit 1\n")
        program.chmod(0o755)

    return says


def test_missing_names_are_left_out(zfs_says: Callable[[str], None]) -> None:
    zfs_says("cannot open 'tank/b': dataset does not exist\ncannot open 'x/c': I/O error")
    assert programs.output("zfs", "list", "tank/a", "tank/b", "x/c", partial=True) == b"tank/a\n"


@pytest.mark.parametrize(
    "complaint",
    [
        "/dev/zfs and /proc/self/mounts are required.\nTry running 'udevadm trigger' as root.",
        "The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to load them.",
        "cannot open 'tank/b': dataset does not exist\ninternal error: out of memory",
        "",
    ],
)
def test_zfs_that_fails_as_a_whole_does_not_say_that_names_are_missing(
    complaint: str, zfs_says: Callable[[str], None]
) -> None:
    zfs_says(complaint)
    with pytest.raises(ZfsFailed, match=r"zfs list failed \(1\)"):
        programs.output("zfs", "list", "tank/a", "tank/b", partial=True)
