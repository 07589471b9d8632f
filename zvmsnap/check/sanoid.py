"""sanoid's configuration: does it take snapshots that fit what guests need?

Each guest's disks must be snapshotted by one `zfs snapshot -r`, and with the hooks, or its RAM fits
none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from zvmsnap.capture.eligibility import mode_property
from zvmsnap.check.facts import Facts, Sanoid, SeenGuest
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config import sanoid_conf
from zvmsnap.config.mode import OFF
from zvmsnap.config.properties import ON

_INIT = "zvmsnap init proposes what is missing"
_FIRST_WITH_ZFS_RECURSION = (2, 0, 2)
_FIRST_WITH_GROUPS = (2, 1)
_TRIMS = (2, 3)
_SNAPSHOTTERS = ("zfs-auto-snapshot", "pyznap", "znapzend", "zfsnap")
_FIRST_OF_SEVERAL = (2, 2)


def installed(facts: Facts) -> Iterator[Finding]:
    """Is there a sanoid, and what is known of its version?"""
    sanoid = facts.sanoid
    if sanoid is None:
        if not _other_callers(facts):
            text = "is not installed: nobody takes snapshots with the hooks"
            yield red("sanoid.missing", "sanoid", text, "apt install sanoid")
        return
    where = f"sanoid {sanoid.spelt}"
    if sanoid.version and sanoid.version < _FIRST_WITH_ZFS_RECURSION:
        yield red(
            "sanoid.version",
            where,
            "knows no `recursive = zfs`: disks on several datasets are of several instants",
            "install sanoid 2.1 or later",
        )
    elif sanoid.version and sanoid.version < _FIRST_WITH_GROUPS:
        yield yellow(
            "sanoid.version",
            where,
            "calls the hooks once for each type: a guest that is snapshotted hourly and daily at "
            "once is dumped twice",
            "install sanoid 2.1 or later",
        )
    else:
        yield green("sanoid.version", where, "is installed")


def _other_callers(facts: Facts) -> bool:
    """Is zrepl, or zfs_autobackup, here to call the hooks?"""
    return any(facts.program(name) for name in ("zrepl", "zfs-autobackup", "zfs_autobackup"))


def spelling(facts: Facts) -> Iterator[Finding]:
    """What sanoid reads otherwise than it was meant, or does not start with."""
    sanoid = facts.sanoid
    if not sanoid or not sanoid.ini:
        return
    conf, ini = str(sanoid.conf), sanoid.ini
    if sanoid.known_keys:
        for section, key in sanoid_conf.unknown_keys(ini, sanoid.known_keys):
            text = f"[{section}] has the key {key}, which sanoid {sanoid.spelt} does not know"
            yield red("sanoid.unknown-key", conf, f"{text}: it does not start", "remove the line")
    for section, name in sanoid_conf.missing_templates(ini):
        text = f"[{section}] uses template {name}, which does not exist; sanoid says nothing"
        yield red("sanoid.template", conf, text, f"write [template_{name}], or use another")
    yield from _repeated(sanoid, ini)
    yield from _blanks(sanoid, ini)
    for title in ini.titles:
        if "recursive" in ini.sections.get("template_default", {}):
            break
        for name in _used(ini.sections[title]):
            if "recursive" in ini.sections.get(f"template_{name}", {}):
                text = f"`recursive` stands in [template_{name}], where sanoid ignores it"
                mend = f"let the line stand in [{title}]"
                yield red("sanoid.recursive-in-template", conf, text, mend)


def _used(section: dict[str, list[str]]) -> list[str]:
    return [each.strip() for text in section.get("use_template", []) for each in text.split(",")]


def _repeated(sanoid: Sanoid, ini: sanoid_conf.Ini) -> Iterator[Finding]:
    counts = sanoid.version >= _FIRST_OF_SEVERAL
    for section, keys in ini.sections.items():
        for key, values in keys.items():
            if len(values) > 1:
                which = "the first counts" if counts else "none counts"
                text = f"[{section}] has {key} {len(values)} times: {which}"
                mend = "let one of the lines stand"
                make = yellow if counts and values[0] == values[-1] else red
                yield make("sanoid.repeated-key", str(sanoid.conf), text, mend)


def _blanks(sanoid: Sanoid, ini: sanoid_conf.Ini) -> Iterator[Finding]:
    if sanoid.version >= _TRIMS:
        return
    for section, keys in ini.sections.items():
        for key, values in keys.items():
            value = values[0] if values else ""
            if len(values) == 1 and value != value.strip():
                text = (
                    f"[{section}] {key} = {value!r}: sanoid before 2.3 takes the blank behind it "
                    "for a part of the value, and reads another one"
                )
                mend = "remove the blank at the end of the line"
                yield red("sanoid.blank", str(sanoid.conf), text, mend)


def sections(facts: Facts) -> Iterator[Finding]:
    """Are sections called as datasets, and in a sequence that sanoid does not undo?"""
    sanoid = facts.sanoid
    if not sanoid or not sanoid.ini or facts.datasets is None:
        return
    away = [name for name, pool in (facts.pools or {}).items() if pool.is_away]
    seen: list[str] = []
    for title in sanoid.ini.titles:
        policy = sanoid.policies.get(title)
        path = policy.path if policy else title
        if path not in facts.datasets and path.partition("/")[0] not in away:
            text = f"[{title}]: there is no dataset {path}; sanoid fails at it in each round"
            yield red("sanoid.no-dataset", str(sanoid.conf), text, "correct or remove the section")
        elif path != title:
            text = f"[{title}] has path = {path}: sanoid calls no hook for a section so named"
            yield red("sanoid.path", str(sanoid.conf), text, f"call the section [{path}]")
        yield from _overwritten(sanoid, title, seen)
        seen.append(title)


def _overwritten(sanoid: Sanoid, title: str, before: Iterable[str]) -> Iterator[Finding]:
    """Sections that stood before `title`, which overwrites them."""
    policy = sanoid.policies.get(title)
    if not policy:
        return
    for name in before:
        own = sanoid.policies.get(name)
        if own and own.parent == title and name != title:
            text = f"[{name}] stands before [{title}], which is recursive: its keys are overwritten"
            mend = f"let [{name}] stand behind [{title}]"
            yield red("sanoid.sequence", str(sanoid.conf), text, mend)


def coverage(facts: Facts) -> Iterator[Finding]:
    """Is each guest snapshotted at one instant, with all its disks?"""
    if not facts.sanoid or not facts.sanoid.ini or facts.datasets is None:
        return
    for guest in facts.on_zfs:
        yield from _coverage_of(facts, guest)
    if not facts.on_zfs and not facts.findings:
        yield green("sanoid.coverage", "", "no guest has a disk on ZFS yet")


def _coverage_of(facts: Facts, guest: SeenGuest) -> Iterator[Finding]:
    datasets = facts.datasets or {}
    wanted = (
        [name for name in guest.datasets if mode_property(datasets[name], "") != OFF]
        if set(guest.datasets) <= datasets.keys()
        else []
    )
    tops = {name: facts.snapshotted.get(name) for name in wanted}
    missing = [name for name, top in tops.items() if top is None]
    parent = _common_parent(wanted)
    if wanted and len(missing) == len(wanted):
        text = f"sanoid snapshots none of its datasets ({', '.join(wanted)}): it gets no points"
        yield yellow("sanoid.not-snapshotted", guest.name, text, _not_snapshotted(parent))
        return
    if missing:
        text = f"sanoid snapshots only a part of its disks, not {', '.join(missing)}"
        yield red("sanoid.part", guest.name, text, _one_section(parent, wanted))
        return
    instants = {top.path for top in tops.values() if top}
    if len(instants) > 1:
        text = (
            f"its disks are snapshotted at different instants ({', '.join(sorted(instants))}): "
            "no RAM fits them"
        )
        yield red("sanoid.instants", guest.name, text, _one_section(parent, wanted))
    elif instants:
        (top,) = instants
        how = "with all below it" if len(wanted) > 1 or top not in wanted else "alone"
        yield green("sanoid.coverage", guest.name, f"is snapshotted with {top}, {how}")


def _not_snapshotted(parent: str) -> str:
    return f"{_INIT}; or say that it is meant so: zfs set zvmsnap:mode=off {parent}"


def _one_section(parent: str, datasets: list[str]) -> str:
    if parent in datasets or "/" in parent:
        return f"write one section [{parent}] with recursive = zfs"
    return f"put {', '.join(datasets)} below one parent, and write a section of it, recursive = zfs"


def _common_parent(datasets: list[str]) -> str:
    if not datasets:
        return ""
    first = datasets[0]
    while first and not all(is_within(name, first) for name in datasets):
        first = first.rpartition("/")[0]
    return first or datasets[0].partition("/")[0]


def children_only(facts: Facts) -> Iterator[Finding]:
    """`process_children_only` with `recursive = zfs` takes nothing at all."""
    sanoid = facts.sanoid
    if not sanoid or not sanoid.ini:
        return
    for title in sanoid.ini.titles:
        policy = sanoid.policies.get(title)
        recursive = sanoid.ini.sections[title].get("recursive", [""])[0]
        if policy and policy.is_on("process_children_only") and "zfs" in recursive.lower():
            text = f"[{title}] is recursive = zfs with process_children_only: nothing is taken"
            mend = "remove process_children_only"
            yield red("sanoid.children-only", str(sanoid.conf), text, mend)


def recursive_property(facts: Facts) -> Iterator[Finding]:
    """Does zvmsnap:recursive contradict what sanoid does?"""
    if not facts.sanoid or not facts.sanoid.ini:
        return
    for name, dataset in (facts.datasets or {}).items():
        policy = facts.snapshotted.get(name)
        if dataset.recursive in (ON, OFF) and policy and policy.path == name:
            says = dataset.recursive == ON
            if says != policy.is_recursive and _has_below(facts, name):
                text = f"zvmsnap:recursive={dataset.recursive}, but sanoid does otherwise"
                mend = f"zfs inherit zvmsnap:recursive {name}"
                yield red("sanoid.recursive-property", name, text, mend)


def _has_below(facts: Facts, name: str) -> bool:
    return any(each.startswith(f"{name}/") for each in facts.datasets or ())


def callers(facts: Facts) -> Iterator[Finding]:
    """Does anybody else snapshot, without the hooks?"""
    for name in _SNAPSHOTTERS if facts.on_zfs else ():
        if facts.program(name):
            text = "is installed: it takes snapshots of its own, without the hooks"
            mend = f"apt remove {name}, or have each dataset snapshotted by one program alone"
            yield yellow("sanoid.second", name, text, mend)
    zrepl = facts.path("/etc/zrepl/zrepl.yml")
    if facts.program("zrepl") and zrepl.exists() and "zvmsnap" not in _text(zrepl):
        text = "names no hook of zvmsnap: zrepl's snapshots have no RAM"
        yield yellow("sanoid.second", str(zrepl), text, "see docs/how-to/other-callers.md")
    for path, line in _scheduled(facts):
        if "syncoid" in line and "--no-sync-snap" not in line and "--help" not in line:
            text = "runs syncoid without --no-sync-snap: its own snapshots do not call the hooks"
            yield yellow("sanoid.sync-snap", str(path), text, "add --no-sync-snap")
    yield from _twice(facts)


def _twice(facts: Facts) -> Iterator[Finding]:
    runs_systemd = facts.path("/run/systemd/system").is_dir()
    timer = (facts.ask("systemctl", "is-enabled", "sanoid.timer") or "").strip()
    if runs_systemd and timer == "enabled" and (tables := by_cron(facts)):
        text = "starts sanoid, and so does sanoid.timer: two rounds take the same snapshots"
        yield red("sanoid.twice", str(tables[0]), text, "remove the line, or disable the timer")


def by_cron(facts: Facts) -> list[Path]:
    """The tables of cron that start sanoid, where systemd runs, too."""
    return [
        path
        for path, line in _scheduled(facts)
        if "sanoid" in line.replace("syncoid", "")
        and ("--cron" in line or "--take-snapshots" in line)
        and "cron" in str(path)
        and "/run/systemd/system" not in line  # Debian's own is for hosts without systemd
    ]


def _scheduled(facts: Facts) -> Iterator[tuple[Path, str]]:
    """The lines of cron's tables and of the administrator's units."""
    folders = ("/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron", "/etc/systemd/system")
    paths = [facts.path("/etc/crontab")]
    for folder in folders:
        paths += sorted(facts.path(folder).glob("*"))
        paths += sorted(facts.path(folder).glob("*.d/*.conf"))
    for folder in ("hourly", "daily", "weekly"):
        paths += sorted(facts.path(f"/etc/cron.{folder}").glob("*"))
    for path in paths:
        for line in _text(path).splitlines():
            if line.strip() and not line.lstrip().startswith(("#", ";")):
                yield path, line


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace") if path.is_file() else ""
    except OSError:
        return ""


CHECKS = (
    installed,
    spelling,
    sections,
    coverage,
    children_only,
    recursive_property,
    callers,
)
