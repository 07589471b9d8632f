"""ZFS: are the pools well, and is it a version that serves?"""

from __future__ import annotations

from collections.abc import Iterator

from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import DestinationInvalid
from zvmsnap.config import destination

_FULL_PERCENT = 95
_NEARLY_FULL_PERCENT = 85
_TRIED_SINCE = (2, 1)
_ENCRYPT_WITH = "age"


def health(facts: Facts) -> Iterator[Finding]:
    """Of each pool: its state, and its room."""
    for name, pool in sorted((facts.pools or {}).items()):
        status = f"zpool status -v {name}"
        if pool.is_away:
            text = f"is {pool.health}: whatever touches it waits; its guests were not looked at"
            yield red("pool.away", name, text, f"{status}; zpool clear {name}")
        elif pool.health != "ONLINE":
            yield yellow("pool.degraded", name, f"is {pool.health}", status)
        elif pool.full_percent >= _FULL_PERCENT:
            text = f"is {pool.full_percent} % full: snapshots and overlays will fail"
            yield red("pool.full", name, text, "free room: zfs list -o space -r " + name)
        elif pool.full_percent >= _NEARLY_FULL_PERCENT:
            text = f"is {pool.full_percent} % full, and becomes slow"
            yield yellow("pool.full", name, text, "free room: zfs list -o space -r " + name)
        else:
            yield green("pool.health", name, f"is ONLINE, {pool.full_percent} % full")


def version(facts: Facts) -> Iterator[Finding]:
    """Of the module in the kernel, and of the programs."""
    try:
        module = facts.path("/sys/module/zfs/version").read_text().strip()
    except OSError:
        return
    number = tuple(int(part) for part in module.split("-")[0].split(".") if part.isdecimal())
    if number < _TRIED_SINCE:
        text = f"{module} is older than 2.1, with which zvmsnap was tried"
        yield yellow("zfs.version", "OpenZFS", text, "install a newer one (backports)")
    said = (facts.ask("zfs", "version") or "").splitlines()
    programs = said[0].removeprefix("zfs-") if said else module
    if programs.split("-")[0] != module.split("-")[0]:
        text = f"programs are {programs}, the module in the kernel is {module}"
        yield yellow("zfs.versions", "OpenZFS", text, "reboot, so that the module is the new one")
    else:
        yield green("zfs.version", "OpenZFS", f"{module} in the kernel and in the programs")


def destinations(facts: Facts) -> Iterator[Finding]:
    """Of each [[destination]]: what is needed here to send to it."""
    for table in facts.config.destination:
        try:
            where = destination.parse(table.target)
        except DestinationInvalid:
            continue  # the configuration was refused for it
        if not where.host and facts.datasets is not None and where.root not in facts.datasets:
            text = "does not exist on this host: nothing is sent"
            mend = f"zpool import, or zfs create -u -o canmount=off {where.root}"
            yield red("destination.missing", where.name, text, mend)
        needs = {
            "syncoid": True,
            "rsync": True,
            "mbuffer": bool(table.bwlimit),
            _ENCRYPT_WITH: bool(table.encrypt_to or table.recipients_file),
        }
        for program, is_needed in needs.items():
            if is_needed and facts.program(program) is None:
                package = {"syncoid": "sanoid"}.get(program, program)
                text = f"sending needs {program}, which is not installed"
                yield red("destination.program", where.name, text, f"apt install {package}")
        for guest in table.guests:
            yield from _known(facts, where.name, guest)


def _known(facts: Facts, where: str, guest: str) -> Iterator[Finding]:
    names = {each.name for each in facts.guests or ()}
    if "/" in guest or facts.guests is None or facts.findings:
        return
    if guest not in names:
        text = f"is to get guest {guest}, which libvirt does not know"
        yield yellow("destination.guest", where, text, "correct `guests` in config.toml")


CHECKS = (health, version, destinations)
