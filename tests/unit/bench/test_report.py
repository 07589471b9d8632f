"""Tables, JSON, chart and page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import image_tables, report, tables
from bench.cells import BACKUPS, NATIVE, image_cell, round_cell
from bench.results import Result

Build = Callable[..., Result]
DOCS = Path(__file__).resolve().parents[3] / "docs"
ON, OFF = round_cell(64, 1, apparmor=True).id, round_cell(64, 1, apparmor=False).id
LARGE = round_cell(1024, 4, apparmor=True).id


@pytest.fixture
def found(result: Build) -> dict[str, Result]:
    def rounds(usual_s: float, memory_s: float) -> dict[str, dict[str, list[float]]]:
        return {
            "usual": {"pause_s": [usual_s, usual_s + 1, usual_s + 2], "pre_s": [usual_s]},
            "memory": {"pause_s": [memory_s], "pre_s": [memory_s], "overlays_s": [9.0]},
        }

    return {
        LARGE: result(LARGE, rounds(9.0, 2.0), notes=["usual: left the guest on an overlay"]),
        OFF: result(OFF, rounds(2.0, 0.6)),
        ON: result(ON, rounds(2.0, 1.5), elsewhere_cpus=1.25),
    }


def test_rounds_are_side_by_side_in_their_order(found: dict[str, Result]) -> None:
    assert tables.pauses(found) == [
        "| guest | usual | memory | paused | paused, three names | take |",
        "|---|---|---|---|---|---|",
        "| 64 MiB, 1 disk, AppArmor on | 3.00 (2.00 to 4.00) | 1.50, 0.50 times | - | - | - |",
        "| 64 MiB, 1 disk, AppArmor off | 3.00 (2.00 to 4.00) | 0.60, 0.20 times | - | - | - |",
        "| 1024 MiB, 4 disks, AppArmor on | 10.0 (9.00 to 11.0) | 2.00, 0.20 times | - | - | - |",
    ]


def test_a_figure_that_the_usual_hooks_do_not_have_has_no_ratio(found: dict[str, Result]) -> None:
    assert "| 64 MiB, 1 disk, AppArmor on | - | 9.00 |" in tables.overlays(found)
    assert tables.post_hooks(found) == ["Not measured."]


def test_parts_of_a_pause_are_beside_what_the_listener_says(result: Build) -> None:
    figures = {
        "usual": {"pause_s": [5.0]},
        "paused": {"pause_s": [0.9], "told_pause_s": [0.8], "part_ram_s": [0.1, 0.2, 0.3]},
        "take": {"pause_s": [0.5]},
    }
    (row,) = tables.pause_parts({ON: result(ON, figures)})[2:]
    ram = "0.20 (0.10 to 0.30)"
    assert row == f"| 64 MiB, 1 disk, AppArmor on | paused | {ram} | - | - | - | - | 0.80 | 0.90 |"


def test_idle_hooks_and_many_points(result: Build) -> None:
    took = {"took_s": [0.2], "peak_mib": [9.0]}
    idle = result("hooks", {"python3 -c pass": took, "pre": {"took_s": [0.8], "peak_mib": [30.0]}})
    assert tables.idle_hooks({"hooks": idle})[-1] == "| pre | 0.80 | 4.00 | 30.0 |"
    few, many = "many points:100 points:1000 snapshots", "many points:1000 points:10000 snapshots"
    listed = tables.many_points(
        {
            many: result(many, {"zvmsnap list": {"took_s": [4.0], "peak_mib": [50.0]}}),
            few: result(few, {"zvmsnap list": {"took_s": [2.0], "peak_mib": [40.0]}}),
        }
    )
    assert listed == [
        "| seconds; MiB | 100 points, 1000 snapshots | 1000 points, 10000 snapshots |",
        "|---|---|---|",
        "| zvmsnap list | 2.00; 40.0 | 4.00; 50.0 |",
    ]


def test_page_images_are_beside_the_first_one(result: Build) -> None:
    cell, changes = image_cell("16K", "zstd").id, image_cell("changes").id
    figures = {
        "first": {"disk_mib": [200.0]},
        "second": {"disk_mib": [10.0]},
        "later": {"disk_mib": [6.0, 8.0]},
        "taking apart, later": {"took_s": [20.0]},
        "pool": {"bclonesaved_mib": [580.0], "bcloneratio": [3.5]},
        "vault": {"used_mib": [804.0], "logicalused_mib": [1200.0]},
    }
    found = {cell: result(cell, figures)}
    assert image_tables.on_disk(found)[2:] == [
        "| 16K, zstd | - | 200 | 10.0, 5.0 % | 7.00 (6.00 to 8.00), 3.5 % | 364 | 20.0 | - |"
    ]
    assert image_tables.said(found)[2:] == ["| 16K, zstd | 580 | 3.50 | 804 | 1200 |"]
    sizes = {"16 KiB": {"used_mib": [300.0, 300.0], "changed_mib": [12.0, 18.0]}}
    found[changes] = result(changes, sizes)
    assert image_tables.changed(found)[2:] == ["| 16 KiB | 300 | 15.0 (12.0 to 18.0) | 5.0 % |"]
    assert image_tables.on_disk(found)[2].startswith("| 16K, zstd | 5.0 % | 200 |")


def test_record_sizes_are_rows_of_one_table(result: Build) -> None:
    cells = [image_cell(record, "zstd").id for record in ("128K", "16K", "64K")]
    figures = {"first": {"disk_mib": [100.0]}, "second": {"disk_mib": [10.0]}}
    rows = image_tables.on_disk({cell: result(cell, figures) for cell in cells})[2:]
    assert [row[:12] for row in rows] == ["| 16K, zstd ", "| 64K, zstd ", "| 128K, zstd"]
    # No image came after the second: nothing is reckoned of it.
    assert rows[0] == "| 16K, zstd | - | 100 | 10.0, 10.0 % | - | - | - | - |"


def test_an_increment_is_beside_its_full_backup(result: Build) -> None:
    figures = {
        "push, full": {"took_s": [50.0], "made_mib": [512.0]},
        "push, increment": {"took_s": [5.0], "made_mib": [4.0]},
        "cp, qcow2": {"took_s": [20.0], "made_mib": [514.0]},
    }
    lines = tables.of_backups({BACKUPS: result(BACKUPS, figures)})
    assert "| push, full | 50.0 | 512 |" in lines
    assert "| push, increment | 5.00, 10.0 % | 4.00, 0.8 % |" in lines
    assert "| cp, qcow2 | 20.0 | 514 |" in lines


def test_page_images_that_are_sent_are_beside_the_first_one(result: Build) -> None:
    cell = image_cell("sent to", "16K").id
    sent = {
        "first": {"wire_mib": [300.0], "rsync_mib": [290.0], "disk_mib": [200.0], "took_s": [60.0]},
        "second": {"wire_mib": [15.0], "rsync_mib": [14.5], "disk_mib": [10.0], "took_s": [20.0]},
    }
    assert image_tables.sent({cell: result(cell, sent)})[2:] == [
        "| 16K | first | 300, 100.0 % | 290, 100.0 % | 200, 100.0 % | 60.0 |",
        "| 16K | second | 15.0, 5.0 % | 14.5, 5.0 % | 10.0, 5.0 % | 20.0 |",
    ]


def test_page_images_are_beside_who_reads_or_copies_as_much(result: Build) -> None:
    cell = image_cell("128K", "lz4").id
    figures = {
        "sha256sum": {"took_s": [4.0], "cpu_s": [3.0]},
        "taking apart, later": {"took_s": [6.0], "cpu_s": [6.0]},
    }
    rows = image_tables.made({cell: result(cell, figures)})
    assert "| 128K, lz4 | sha256sum | 4.00 | 3.00 |" in rows
    assert "| 128K, lz4 | taking apart, later | 6.00, 1.50 times | 6.00, 2.00 times |" in rows


def test_page_images_natively_are_told_for_each_gib(result: Build) -> None:
    figures = {
        "the image": {"size_mib": [512.0]},
        "sha256sum": {"took_s": [1.0], "cpu_s": [0.5]},
        "taking apart": {"took_s": [2.0], "cpu_s": [1.0], "peak_mib": [30.0, 31.0]},
    }
    assert image_tables.natively({NATIVE: result(NATIVE, figures)})[2:] == [
        "| sha256sum | 1.00 | 2.00 | 0.50 | 1.00 | - |",
        "| taking apart | 2.00, 2.00 times | 4.00 | 1.00, 2.00 times | 2.00 | 31.0 |",
        "| cp | - | - | - | - | - |",
        "| cp, and the file on the disk | - | - | - | - | - |",
        "| rebuilding | - | - | - | - | - |",
    ]


def test_datasets_and_crowds(result: Build) -> None:
    figures = {"without hooks": {"took_s": [30.0]}, "memory": {"took_s": [80.0]}}
    rows = tables.datasets({"100 datasets": result("100 datasets", figures)})
    assert rows[2:] == [
        "| 100 datasets, 3 guests | without hooks | 30.0 | - |",
        "| 100 datasets, 3 guests | memory | 80.0 | 0.50 |",
    ]
    pauses = {
        "memory, alone": {"pause_s": [1.0, 2.0], "took_s": [9.0]},
        "memory, all in one round": {"pause_s": [2.0, 3.0], "took_s": [20.0]},
    }
    row = tables.crowds({"10 guests": result("10 guests", pauses)})[2]
    expected = (
        "| 10 guests | memory | 1.50 (1.00 to 2.00) | 2.50 (2.00 to 3.00) | 1.50 | 9.00 | 20.0 |"
    )
    assert row == expected


def test_conditions_say_how_busy_the_machine_was(found: dict[str, Result]) -> None:
    lines = tables.conditions(found)
    assert "| ZFS | zfs-2.3.9 |" in lines
    assert f"| {ON} | 3 | 1.2 | 0.1, 1.1 | 1234567 | 2026-11-26 04:00 UTC | 1 |" in lines


def test_notes_name_the_cell(found: dict[str, Result]) -> None:
    assert tables.notes(found) == [f"- {LARGE}: usual: left the guest on an overlay"]
    assert tables.notes({}) == ["Nothing went wrong in the last run."]


def test_every_table_of_nothing_says_so() -> None:
    for name, make in tables.BLOCKS.items():
        assert make({}), name


def test_json_is_read_as_it_was_written(found: dict[str, Result]) -> None:
    assert report.read(report.as_json(found)) == found
    other = json.loads(report.as_json(found)) | {"schema": 2}
    with pytest.raises(ValueError, match="schema 2"):
        report.read(json.dumps(other))


def test_the_page_keeps_what_is_around_its_blocks(found: dict[str, Result]) -> None:
    old = (
        "# Title\n\nBefore.\n\n<!-- bench: notes -->\nold\n<!-- end of bench: notes -->\n\nAfter.\n"
    )
    new = report.page(old, found)
    assert new == (
        "# Title\n\nBefore.\n\n<!-- bench: notes -->\n\n"
        f"- {LARGE}: usual: left the guest on an overlay\n\n"
        "<!-- end of bench: notes -->\n\nAfter.\n"
    )
    assert report.page(new, found) == new
    with pytest.raises(KeyError, match="none"):
        report.page("<!-- bench: none -->\n<!-- end of bench: none -->\n", found)


def test_the_page_of_the_docs_is_of_its_json() -> None:
    page = (DOCS / "performance.md").read_text()
    assert set(re.findall("^<!-- bench: (\\w+) -->$", page, re.M)) == tables.BLOCKS.keys()
    assert report.page(page, report.read((DOCS / "performance.json").read_text())) == page


def test_chart_has_no_script_and_is_the_same_twice(found: dict[str, Result]) -> None:
    pytest.importorskip("pygal", reason="pip install -e '.[dev]' again")
    from bench import chart

    drawn = chart.svg(found)
    assert drawn == chart.svg(found)
    assert b"<script" not in drawn and b"<!--" not in drawn
    texts = "".join(ET.fromstring(drawn).itertext())
    assert "64 MiB, 1 disk, AppArmor off" in texts and "usual shell hooks" in texts


def test_writes_all_three(tmp_path: Path, found: dict[str, Result]) -> None:
    pytest.importorskip("pygal", reason="pip install -e '.[dev]' again")
    (tmp_path / "performance.md").write_text(
        "<!-- bench: notes -->\n<!-- end of bench: notes -->\n"
    )
    report.write(found, tmp_path)
    assert "on an overlay" in (tmp_path / "performance.md").read_text()
    assert report.read((tmp_path / "performance.json").read_text()) == found
    ET.parse(tmp_path / "performance.svg")
