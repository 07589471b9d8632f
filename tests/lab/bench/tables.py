"""Tables of the results, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench import back, crowd, hooks, images
from bench.cells import (
    CHANGES,
    FREEZE,
    MEMORY,
    PAUSED,
    QUIESCED,
    SENT,
    TAKE,
    THREE_NAMES,
    USUAL,
    image_cell,
    image_cells,
    number,
)
from bench.goals import verdicts
from bench.results import Result
from bench.spread import median, ratio, shown, spread

Found = Mapping[str, Result]
Lines = list[str]

NONE = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """A table; no lines if it has no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    if not body:
        return ["Not measured."]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]


def figures(result: Result, way: str, measure: str, against: str = "") -> str:
    """Median, and least and largest; with `against`, how many times that way's."""
    found = spread(result.of(way, measure))
    if found is None:
        return NONE
    times = ratio(result.of(way, measure), result.of(against, measure)) if against else None
    return str(found) if times is None else f"{found}, {times:.2f} times"


def round_cells(found: Found) -> list[Result]:
    """Those of rounds, by RAM, disks and AppArmor."""
    rounds = [result for cell, result in found.items() if cell.startswith("round:")]
    return sorted(rounds, key=lambda result: _order(result.cell))


def _order(cell: str) -> tuple[int, int, bool]:
    _, filled, disks, apparmor = cell.split(":")
    return number(filled), number(disks), apparmor.endswith("off")


def _where(result: Result) -> str:
    return ", ".join(result.cell.split(":")[1:])


def of_rounds(found: Found, measure: str, ways: Sequence[str]) -> Lines:
    """One measure of rounds, side by side."""
    head = ["guest", USUAL, *ways]
    rows = [
        [
            _where(result),
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
        [_where(result), way, *(figures(result, way, measure) for measure in parts)]
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
                _times(result, way, hooks.PYTHON, "took_s"),
                _largest(result, way),
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
            _times(result, way, back.BY_HAND, "next_count_s"),
            _times(result, way, back.CALL, "next_count_s"),
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
        [way, *(f"{figures(result, way, 'took_s')}; {_largest(result, way)}" for result in results)]
        for way in ways
    ]
    return table(["seconds; MiB", *map(_where, results)], rows)


def peak_memory(found: Found) -> Lines:
    """Each command's largest process."""
    result = found.get("peak memory")
    if result is None:
        return table((), ())
    rows = [[way, _largest(result, way), figures(result, way, "took_s")] for way in result.figures]
    return table(["command", "peak memory, MiB", "seconds"], rows)


def _vaults(found: Found) -> list[Result]:
    """The cells of vaults, by record size and compression."""
    cells = [each.id for each in image_cells() if each.words[0].endswith("K")]
    return [found[cell] for cell in cells if cell in found]


def _of_first(result: Result, way: str, measure: str) -> str:
    """With how much of the first image's it is."""
    share = ratio(result.of(way, measure), result.of(images.FIRST, measure))
    said = figures(result, way, measure)
    return said if share is None else f"{said}, {100 * share:.1f} %"


def images_on_disk(found: Found) -> Lines:
    """What page images take, by record size and compression of the vault."""
    rows = [
        [
            _where(result),
            figures(result, images.FIRST, "disk_mib"),
            _of_first(result, images.SECOND, "disk_mib"),
            _of_first(result, images.LATER, "disk_mib"),
            figures(result, images.POOL_SAYS, "bclonesaved_mib"),
            figures(result, images.POOL_SAYS, "bcloneratio"),
            figures(result, images.VAULT_SAYS, "used_mib"),
            figures(result, images.VAULT_SAYS, "logicalused_mib"),
        ]
        for result in _vaults(found)
    ]
    head = [
        "`recordsize`, `compression`",
        "first image, MiB",
        "second",
        "each later one",
        "`bclonesaved`",
        "`bcloneratio`",
        "`used`",
        "`logicalused`",
    ]
    return table(head, rows)


def images_changed(found: Found) -> Lines:
    """How much of RAM changes, by the size of what it is counted in."""
    result = found.get(image_cell(CHANGES).id)
    rows = [
        [
            size,
            figures(result, size, "used_mib"),
            figures(result, size, "changed_mib"),
            f"{100 * share:.1f} %" if (share := _share_changed(result, size)) else NONE,
        ]
        for size in (result.figures if result else ())
        if result
    ]
    return table(["pieces of", "not zeros, MiB", "changed, MiB", "of that"], rows)


def _share_changed(result: Result, size: str) -> float | None:
    return ratio(result.of(size, "changed_mib"), result.of(size, "used_mib"))


def images_sent(found: Found) -> Lines:
    """What goes over, and what it takes there."""
    rows = [
        [
            record,
            way,
            _of_first(result, way, "wire_mib"),
            _of_first(result, way, "rsync_mib"),
            _of_first(result, way, "disk_mib"),
            figures(result, way, "took_s"),
        ]
        for record in ("16K", "128K")
        if (result := found.get(image_cell(SENT, record).id))
        for way in (images.FIRST, images.SECOND, images.LATER)
        if result.of(way, "wire_mib")
    ]
    head = [
        "`recordsize` there",
        "image",
        "went over, MiB",
        "of that rsync's",
        "on the disk there, MiB",
        "seconds",
    ]
    return table(head, rows)


def images_made(found: Found) -> Lines:
    """How long page images take, beside commands that read or copy as much."""
    ways = {
        images.SHA256SUM: images.SHA256SUM,
        images.APART_FIRST: images.SHA256SUM,
        images.APART: images.SHA256SUM,
        images.COPY: images.COPY,
        images.REBUILT: images.COPY,
        images.EXPORTED: images.COPY,
    }
    rows = [
        [
            _where(result),
            way,
            figures(result, way, "took_s", against if against != way else ""),
            figures(result, way, "cpu_s", against if against != way else ""),
        ]
        for result in _vaults(found)
        for way, against in ways.items()
    ]
    return table(["vault", "", "seconds", "of the CPU"], rows)


def _times(result: Result, way: str, against: str, measure: str) -> str:
    times = ratio(result.of(way, measure), result.of(against, measure))
    return NONE if times is None else f"{times:.2f}"


def _largest(result: Result, way: str) -> str:
    peaks = result.of(way, "peak_mib")
    return shown(max(peaks)) if peaks else NONE


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
    "images": images_on_disk,
    "images_changed": images_changed,
    "images_sent": images_sent,
    "images_made": images_made,
    "notes": notes,
}
