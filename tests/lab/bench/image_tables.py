"""Tables of page images, in Markdown."""

from __future__ import annotations

from bench import images, native
from bench.cells import CHANGES, NATIVE, SENT, image_cell, image_cells
from bench.markdown import NONE, Found, Lines, figures, largest, of_first, table, where
from bench.results import Result
from bench.spread import median, ratio, shown

_DAY_IMAGES = 24
_DAY = f"{_DAY_IMAGES} images"


def _vaults(found: Found) -> list[Result]:
    """The cells of vaults, by record size and compression."""
    cells = [each.id for each in image_cells() if each.words[0].endswith("K")]
    return [found[cell] for cell in cells if cell in found]


def on_disk(found: Found) -> Lines:
    """What page images take and cost, by record size and compression of the vault."""
    changes = found.get(image_cell(CHANGES).id)
    rows = [
        [
            where(result),
            _changed(changes, result.cell.split(":")[1]),
            figures(result, images.FIRST, "disk_mib"),
            of_first(result, images.SECOND, images.FIRST, "disk_mib"),
            of_first(result, images.LATER, images.FIRST, "disk_mib"),
            _day(result),
            figures(result, images.APART, "took_s"),
            figures(result, images.REBUILT, "took_s"),
        ]
        for result in _vaults(found)
    ]
    head = [
        "`recordsize`, `compression`",
        "of RAM changed",
        "first image, MiB",
        "second",
        "each later one",
        f"{_DAY}, MiB",
        f"{images.APART}, s",
        f"{images.REBUILT}, s",
    ]
    return table(head, rows)


def _changed(changes: Result | None, record: str) -> str:
    share = changes and _share_changed(changes, f"{record.removesuffix('K')} KiB")
    return f"{100 * share:.1f} %" if share else NONE


def _day(result: Result) -> str:
    """What so many images would take, if all after the first one took what these do."""
    first, *others = (
        median(result.of(way, "disk_mib")) for way in (images.FIRST, images.SECOND, images.LATER)
    )
    if first is None or None in others:
        return NONE
    second_mib, later_mib = (each or 0.0 for each in others)
    return shown(first + second_mib + (_DAY_IMAGES - 2) * later_mib)


def said(found: Found) -> Lines:
    """What pool and vault say of all images together."""
    measures = {
        "bclonesaved": (images.POOL_SAYS, "bclonesaved_mib"),
        "bcloneratio": (images.POOL_SAYS, "bcloneratio"),
        "used": (images.VAULT_SAYS, "used_mib"),
        "logicalused": (images.VAULT_SAYS, "logicalused_mib"),
    }
    rows = [
        [where(result), *(figures(result, *each) for each in measures.values())]
        for result in _vaults(found)
    ]
    return table(["`recordsize`, `compression`", *(f"`{name}`" for name in measures)], rows)


def changed(found: Found) -> Lines:
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


def sent(found: Found) -> Lines:
    """What goes over, and what it takes there."""
    rows = [
        [
            record,
            way,
            of_first(result, way, images.FIRST, "wire_mib"),
            of_first(result, way, images.FIRST, "rsync_mib"),
            of_first(result, way, images.FIRST, "disk_mib"),
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


def made(found: Found) -> Lines:
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
            where(result),
            way,
            figures(result, way, "took_s", against if against != way else ""),
            figures(result, way, "cpu_s", against if against != way else ""),
        ]
        for result in _vaults(found)
        for way, against in ways.items()
    ]
    return table(["vault", "", "seconds", "of the CPU"], rows)



def natively(found: Found) -> Lines:
    """The same on the machine that has run the benchmark, without a lab."""
    result = found.get(NATIVE)
    if result is None:
        return table((), ())
    against = {native.APART: images.SHA256SUM, images.REBUILT: images.COPY}
    rows = [
        [
            way,
            figures(result, way, "took_s", against.get(way, "")),
            _for_each_gib(result, way, "took_s"),
            figures(result, way, "cpu_s", against.get(way, "")),
            _for_each_gib(result, way, "cpu_s"),
            largest(result, way),
        ]
        for way in (
            images.SHA256SUM,
            native.APART,
            images.COPY,
            native.SYNCED_COPY,
            images.REBUILT,
        )
    ]
    head = ["", "seconds", "a GiB", "of the CPU", "a GiB", "peak memory, MiB"]
    return table(head, rows)


def _for_each_gib(result: Result, way: str, measure: str) -> str:
    took, size_mib = median(result.of(way, measure)), median(result.of(native.IMAGE, "size_mib"))
    return shown(1024 * took / size_mib) if took is not None and size_mib else NONE
