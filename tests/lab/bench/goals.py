"""The goals, and whether the figures meet them. Of a busy machine, or of one repeat, none is said.

| what                                             | at most                                 |
|--------------------------------------------------|-----------------------------------------|
| `paused` stands still, 512 MiB, 2 disks          | 1.0 s, and 1/5 of the usual hooks       |
| the same over all RAM and disks                  | the longest 1.3 times the shortest      |
| `take` stands still                              | 0.8 s, of one guest and of many         |
| pre and post that find no guest                  | 4 times `python3 -c pass`               |
| pruning of an unknown snapshot                   | 2.5 times that                          |
| pre and post beside the usual hooks              | half of what they took beyond them once |
| clone; restore without safety point              | 1.1 and 1.2 times what is done by hand  |
| the safety point                                 | 1.1 times `virsh save`                  |
| the slowest of many guests in one round          | 1.5 times the slowest alone             |
| memory of any command                            | 64 MiB                                  |
| RAM of an idle guest, the second image           | 5 % of the first on the disk            |
| the same, sent                                   | 10 % of the first on the way            |
| taking apart                                     | twice sha256sum of the same file        |
| rebuilding                                       | 10/9 of cp                              |
| increment of an idle disk, by ZFS's snapshots    | 5 % of the full backup, time and bytes  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench import back, backups, crowd, hooks, images, native
from bench.cells import (
    BACKUPS,
    MEMORY,
    MIDDLE,
    NATIVE,
    PAUSED,
    SENT,
    TAKE,
    USUAL,
    image_cell,
    round_cell,
)
from bench.results import Result
from bench.spread import median, ratio, shown

Found = Mapping[str, Result]
Value = Callable[[Result], float | None]

BUSY_CPUS = 0.5
REPEATS_MIN = 3

_MIDDLE = MIDDLE.id
# As docs/how-to advises for the vaults of both hosts.
_VAULT, _SENT = image_cell("16K", "zstd").id, image_cell(SENT, "16K").id
# Seconds of `memory` beyond the usual hooks, one disk, before it was asked to be half of that.
_OWN_TIME_S = {(64, "pre_s"): 4.0, (64, "post_s"): 4.25, (512, "pre_s"): 3.3, (512, "post_s"): 9.2}


@dataclass(frozen=True)
class Verdict:
    """One goal: the figure, what it may be at most, and why nothing is said of it, if so."""

    what: str
    figure: float | None
    limit: float
    unit: str
    silent: str = ""

    @property
    def said(self) -> str:
        """For people."""
        if self.figure is None:
            return "not measured"
        if self.silent:
            return f"not said: {self.silent}"
        return "met" if self.figure <= self.limit else f"missed by {self._missed_by}"

    @property
    def _missed_by(self) -> str:
        assert self.figure is not None
        return f"{shown(self.figure - self.limit)}{self.unit}"


def verdicts(found: Found) -> list[Verdict]:
    """All goals, in their order."""
    return [
        *_pauses(found),
        *_idle_hooks(found),
        *_own_time(found),
        *_ways_back(found),
        *_crowds(found),
        *_memory(found),
        *_images(found),
        *_backups(found),
    ]


def _of(found: Found, cell: str, what: str, limit: float, unit: str, value: Value) -> Verdict:
    """One that is decided by one cell."""
    result = found.get(cell)
    if result is None:
        return Verdict(what, None, limit, unit)
    return Verdict(what, value(result), limit, unit, silence([result]))


def silence(results: Sequence[Result]) -> str:
    """Why these results decide nothing; "" if they do."""
    busiest = max((result.elsewhere_cpus for result in results), default=0.0)
    fewest = min((result.repeats for result in results), default=REPEATS_MIN)
    if busiest > BUSY_CPUS:
        return f"the machine was busy, {busiest:.1f} CPUs elsewhere"
    if fewest < REPEATS_MIN:
        return f"measured {'once' if fewest == 1 else 'twice'}"
    return ""


def _middle(way: str, measure: str) -> Value:
    return lambda result: median(result.of(way, measure))


def _against(way: str, other: str, measure: str) -> Value:
    return lambda result: ratio(result.of(way, measure), result.of(other, measure))


def _pauses(found: Found) -> Iterable[Verdict]:
    guest = "512 MiB, 2 disks, AppArmor on"
    against_usual = _against(PAUSED, USUAL, "pause_s")
    yield _of(found, _MIDDLE, f"paused stands still, {guest}", 1.0, " s", _paused)
    yield _of(found, _MIDDLE, "the same against the usual hooks", 0.2, " times", against_usual)
    rounds = _of_one_code([each for cell, each in found.items() if cell.startswith("round:")])
    medians = [figure for each in rounds if (figure := _paused(each)) is not None]
    flat = max(medians) / min(medians) if len(medians) > 1 else None
    what = "paused, longest over all RAM and disks against the shortest"
    yield Verdict(what, flat, 1.3, " times", silence(rounds))
    yield _of(found, _MIDDLE, f"take stands still, {guest}", 0.8, " s", _middle(TAKE, "pause_s"))
    for cell in _crowd_cells(found):
        yield _of(found, cell, f"take of {cell}, the longest", 0.8, " s", _longest_take)


def _of_one_code(results: Sequence[Result]) -> list[Result]:
    """Those of the code that was measured last: others were maybe measured on another machine."""
    newest = max(results, key=lambda each: each.conditions["date"], default=None)
    return [each for each in results if newest and each.product == newest.product]


def _paused(result: Result) -> float | None:
    return median(result.of(PAUSED, "pause_s"))


def _longest_take(result: Result) -> float | None:
    return max(_together(result, TAKE), default=None)


def _idle_hooks(found: Found) -> Iterable[Verdict]:
    for way, limit in ((hooks.PRE, 4.0), (hooks.POST, 4.0), (hooks.PRUNING, 2.5)):
        what = f"{way}, against {hooks.PYTHON}"
        yield _of(found, "hooks", what, limit, " times", _against(way, hooks.PYTHON, "took_s"))


def _own_time(found: Found) -> Iterable[Verdict]:
    for (filled_mib, measure), then_s in _OWN_TIME_S.items():
        role = measure.removesuffix("_s")
        what = f"{role} of memory beyond the usual hook, {filled_mib} MiB, 1 disk"
        cell = round_cell(filled_mib, 1, apparmor=True).id
        yield _of(found, cell, what, then_s / 2, " s", _beyond_usual(measure))


def _beyond_usual(measure: str) -> Value:
    def value(result: Result) -> float | None:
        ours, usual = median(result.of(MEMORY, measure)), median(result.of(USUAL, measure))
        return ours - usual if ours is not None and usual is not None else None

    return value


def _ways_back(found: Found) -> Iterable[Verdict]:
    for cell in ("back:64 MiB", "back:512 MiB"):
        memory = cell.partition(":")[2]
        for way, limit in ((back.CLONE, 1.1), (back.NO_SAFETY, 1.2)):
            what = f"{way}, {memory}, next count against by hand"
            value = _against(way, back.BY_HAND, "next_count_s")
            yield _of(found, cell, what, limit, " times", value)
        what = f"the safety point of restore, {memory}, against virsh save"
        yield _of(found, cell, what, 1.1, " times", _safety)


def _safety(result: Result) -> float | None:
    with_it, without = (
        median(result.of(way, "next_count_s")) for way in (back.RESTORE, back.NO_SAFETY)
    )
    save = median(result.of(back.SAVE, "took_s"))
    return (with_it - without) / save if with_it and without and save else None


def _crowd_cells(found: Found) -> list[str]:
    return [cell for cell in found if cell.endswith(" guests")]


def _together(result: Result, way: str) -> list[float]:
    return result.of(f"{way}, {crowd.TOGETHER}", "pause_s")


def _crowds(found: Found) -> Iterable[Verdict]:
    for cell in _crowd_cells(found) or ["10 guests"]:
        for way in (MEMORY, PAUSED):

            def slowest(result: Result, way: str = way) -> float | None:
                alone = result.of(f"{way}, {crowd.ALONE}", "pause_s")
                together = _together(result, way)
                return max(together) / max(alone) if alone and together else None

            yield _of(
                found,
                cell,
                f"{way}, slowest of {cell} in one round against alone",
                1.5,
                " times",
                slowest,
            )


def _memory(found: Found) -> Iterable[Verdict]:
    for cell, result in sorted(found.items()):
        peaks = {way: max(result.of(way, "peak_mib"), default=0.0) for way in result.figures}
        if any(peaks.values()):
            way = max(peaks, key=lambda each: peaks[each])
            # Memory is the same on a busy machine, and each time.
            yield Verdict(f"memory, {cell}: largest is {way}", peaks[way], 64.0, " MiB")


def _images(found: Found) -> Iterable[Verdict]:
    for cell, measure, what, limit in (
        (_VAULT, "disk_mib", "RAM of an idle guest on the disk, second against first image", 5.0),
        (_SENT, "wire_mib", "RAM of an idle guest on the way, second against first image", 10.0),
    ):
        # So many bytes they are on a busy machine, too.
        percent = _percent(found.get(cell), images.SECOND, images.FIRST, measure)
        yield Verdict(what, percent, limit, " %")
    for cell, where, apart in (
        (NATIVE, "natively", native.APART),
        (_VAULT, "in the lab", images.APART),
    ):
        for way, against, limit in (
            (apart, images.SHA256SUM, 2.0),
            (images.REBUILT, images.COPY, 1 / 0.9),
        ):
            what, value = f"{way} {where}, against {against}", _against(way, against, "took_s")
            yield _of(found, cell, what, limit, " times", value)


def _backups(found: Found) -> Iterable[Verdict]:
    result = found.get(BACKUPS)
    full, increment = (f"{backups.SNAPSHOT}, {each}" for each in (backups.FULL, backups.INCREMENT))
    for measure, of in (("took_s", "time"), ("made_mib", "bytes")):
        what = f"backup of an idle disk by snapshot, increment against full, {of}"
        silent = silence([result]) if result and measure == "took_s" else ""
        yield Verdict(what, _percent(result, increment, full, measure), 5.0, " %", silent)


def _percent(result: Result | None, way: str, of: str, measure: str) -> float | None:
    share = _against(way, of, measure)(result) if result else None
    return None if share is None else 100 * share
