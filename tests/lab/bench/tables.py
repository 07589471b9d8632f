"""Tables of the results, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench import back, backups, crowd, hooks, image_tables
from bench.cells import BACKUPS, FREEZE, MEMORY, PAUSED, QUIESCED, TAKE, THREE_NAMES, USUAL, number
from bench.goals import verdicts
from bench.markdown import NONE, Found, Lines, figures, largest, of_first, table, times, where
from bench.results import Result
from bench.spread import median, shown


def round_cells(found: Found) -> list[Result]:
    """Those of rounds, by RAM, disks and AppArmor."""
    rounds = [result for cell, result in found.items() if cell.startswith("round:")]
    return sorted(rounds, key=lambda result: _order(result.cell))


def _order(cell: str) -> tuple[int, int, bool]:
    _, filled, disks, apparmor = cell.split(":")
    return number(filled), number(disks), apparmor.endswith("off")


def of_rounds(found: Found, measure: str, ways: Sequence[str]) -> Lines:
    """One measure of rounds, side by side."""
    head = ["guest", USUAL, *ways]
    rows = [
        [
            where(result),
            figures(result, USUAL, measure),
            *(figures(result, way, measure, USUAL) for way in ways),
        ]
        for result in round_cells(found)
        if any(result.of(way, measure) for way in (USUAL, *ways))
    ]
    return table(head, rows)


def pauses(found: Found) -> Lines:
    """How long guests stand still."""
    return of_rounds(found, "pause_s", (MEMORY, PAUSED, THREE_NAMES, TAKE))


def pause_parts(found: Found) -> Lines:
    """What pauses consist of, as points say; the listener's figure beside theirs."""
    parts = {
        "part_ram_s": "RAM",
        "part_flush_s": "flush",
        "part_overlays_s": "overlays",
        "part_snapshot_s": "snapshot",
        "part_resume_s": "going on",
        "told_pause_s": "pause, as the point says",
        "pause_s": "pause, as the listener says",
    }
    rows = [
        [where(result), way, *(figures(result, way, measure) for measure in parts)]
        for result in round_cells(found)
        for way in (MEMORY, PAUSED, THREE_NAMES, TAKE)
        if result.of(way, "told_pause_s")
    ]
    return table(["guest", "", *parts.values()], rows)


def pre_hooks(found: Found) -> Lines:
    """How long pre takes."""
    return of_rounds(found, "pre_s", (MEMORY, PAUSED))


def post_hooks(found: Found) -> Lines:
    """How long post takes."""
    return of_rounds(found, "post_s", (MEMORY, PAUSED))


def overlays(found: Found) -> Lines:
    """How long guests are on overlays."""
    return of_rounds(found, "overlays_s", (MEMORY,))


def quiesced(found: Found) -> Lines:
    """How long a guest with frozen file systems waits."""
    result = found.get("quiesced")
    if result is None:
        return table((), ())
    measures = {"writes_wait_s": "longest wait of a write", "pre_s": "pre", "post_s": "post"}
    return table(
        ["", FREEZE, QUIESCED],
        [
            [what, figures(result, FREEZE, measure), figures(result, QUIESCED, measure, FREEZE)]
            for measure, what in measures.items()
        ],
    )


def idle_hooks(found: Found) -> Lines:
    """Hooks that find nothing to do."""
    result = found.get("hooks")
    if result is None:
        return table((), ())
    return table(
        ["command", "seconds", f"times `{hooks.PYTHON}`", "peak memory, MiB"],
        [
            [
                way,
                figures(result, way, "took_s"),
                times(result, way, hooks.PYTHON, "took_s"),
                largest(result, way),
            ]
            for way in result.figures
        ],
    )


def datasets(found: Found) -> Lines:
    """Rounds over many datasets."""
    rows = []
    for cell, result in found.items():
        if not cell.endswith(" datasets"):
            continue
        without = median(result.of(hooks.NO_HOOKS, "took_s"))
        for way in result.figures:
            took = median(result.of(way, "took_s"))
            each = (took - without) / number(cell) if took is not None and without else None
            rows.append(
                [
                    f"{cell}, 3 guests",
                    way,
                    figures(result, way, "took_s"),
                    shown(each) if each and way != hooks.NO_HOOKS else NONE,
                ]
            )
    return table(["round", "hooks", "seconds", "hooks' seconds for each dataset"], rows)


def ways_back(found: Found) -> Lines:
    """Restore and clone."""
    rows = [
        [
            cell.partition(":")[2],
            way,
            figures(result, way, "next_count_s"),
            times(result, way, back.BY_HAND, "next_count_s"),
            times(result, way, back.CALL, "next_count_s"),
            figures(result, way, "took_s"),
        ]
        for cell, result in sorted(found.items(), key=lambda pair: _first_number(pair[0]))
        if cell.startswith("back:")
        for way in result.figures
    ]
    head = [
        "RAM",
        "command",
        "seconds to the next count",
        "times by hand",
        "times the call alone",
        "seconds to its end",
    ]
    return table(head, rows)


def _first_number(cell: str) -> int:
    digits = "".join(each if each.isdigit() else " " for each in cell).split()
    return int(digits[0]) if digits else 0


def crowds(found: Found) -> Lines:
    """Many guests in one round."""
    rows = []
    for cell, result in found.items():
        if not cell.endswith(" guests"):
            continue
        for way in (MEMORY, PAUSED, TAKE):
            alone, together = f"{way}, {crowd.ALONE}", f"{way}, {crowd.TOGETHER}"
            longest = [max(result.of(each, "pause_s"), default=0.0) for each in (alone, together)]
            rows.append(
                [
                    cell,
                    way,
                    figures(result, alone, "pause_s"),
                    figures(result, together, "pause_s"),
                    f"{longest[1] / longest[0]:.2f}" if longest[0] else NONE,
                    figures(result, alone, "took_s"),
                    figures(result, together, "took_s"),
                ]
            )
    head = [
        "guests",
        "level",
        "stands still alone",
        "in one round",
        "slowest against slowest",
        "round of one",
        "round of all",
    ]
    return table(head, rows)


def many_points(found: Found) -> Lines:
    """Commands on a host with many points; by how many."""
    results = sorted(
        (result for cell, result in found.items() if cell.startswith("many points:")),
        key=lambda result: _first_number(result.cell),
    )
    ways = dict.fromkeys(way for result in results for way in result.figures)
    rows = [
        [way, *(f"{figures(result, way, 'took_s')}; {largest(result, way)}" for result in results)]
        for way in ways
    ]
    return table(["seconds; MiB", *map(where, results)], rows)


def peak_memory(found: Found) -> Lines:
    """Each command's largest process."""
    result = found.get("peak memory")
    if result is None:
        return table((), ())
    rows = [[way, largest(result, way), figures(result, way, "took_s")] for way in result.figures]
    return table(["command", "peak memory, MiB", "seconds"], rows)


def of_backups(found: Found) -> Lines:
    """Each way of `zvmsnap backup`, and what others do."""
    result = found.get(BACKUPS)
    if result is None:
        return table((), ())
    measures = "took_s", "made_mib"
    rows = []
    for way in (*backups.WAYS, backups.OTHER):
        full, increment = f"{way}, {backups.FULL}", f"{way}, {backups.INCREMENT}"
        rows.append([full, *(figures(result, full, each) for each in measures)])
        rows.append([increment, *(of_first(result, increment, full, each) for each in measures)])
    for way in (backups.COPY, backups.COPY_QCOW2):
        rows.append([way, *(figures(result, way, each) for each in measures)])
    return table(["backup", "seconds", "MiB"], rows)


def goals(found: Found) -> Lines:
    """Each goal, and whether it is met."""
    return table(
        ["what", "figure", "goal", ""],
        [
            [
                each.what,
                NONE if each.figure is None else f"{shown(each.figure)}{each.unit}",
                f"{shown(each.limit)}{each.unit}",
                each.said,
            ]
            for each in verdicts(found)
        ],
    )


def conditions(found: Found) -> Lines:
    """What all figures were measured on, and how busy the machine was at each."""
    shared: dict[str, dict[str, None]] = {}
    for result in found.values():
        for name, value in result.conditions.items():
            if name not in ("date", "code"):
                shared.setdefault(name, {})[value] = None
    lines = table(["", ""], [[name, "; ".join(values)] for name, values in shared.items()])
    rows = [
        [
            cell,
            str(result.repeats) + ("" if result.warm else ", cold"),
            f"{result.elsewhere_cpus:.1f}",
            ", ".join(f"{minute:.1f}" for minute, _ in result.load),
            result.conditions.get("code", ""),
            result.conditions.get("date", ""),
            f"{result.seconds / 60:.0f}",
        ]
        for cell, result in found.items()
    ]
    head = [
        "measured",
        "repeats",
        "CPUs busy elsewhere",
        "load before, after",
        "commit",
        "date",
        "minutes",
    ]
    return [*lines, "", *table(head, rows)]


def notes(found: Found) -> Lines:
    """What a reader must know of single figures."""
    lines = [f"- {cell}: {note}" for cell, result in found.items() for note in result.notes]
    return lines or ["Nothing went wrong in the last run."]


BLOCKS = {
    "conditions": conditions,
    "goals": goals,
    "pauses": pauses,
    "parts": pause_parts,
    "pre": pre_hooks,
    "post": post_hooks,
    "overlays": overlays,
    "quiesced": quiesced,
    "hooks": idle_hooks,
    "datasets": datasets,
    "back": ways_back,
    "crowds": crowds,
    "points": many_points,
    "memory": peak_memory,
    "backups": of_backups,
    "images": image_tables.on_disk,
    "images_said": image_tables.said,
    "images_changed": image_tables.changed,
    "images_sent": image_tables.sent,
    "images_made": image_tables.made,
    "images_natively": image_tables.natively,
    "notes": notes,
}
