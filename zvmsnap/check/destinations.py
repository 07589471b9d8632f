"""Each [[destination]]: what is needed here to send to it, and what is there.

Each machine is asked by the programs that it has itself, as a send asks it, over one connection,
and for a limited time; all machines at once, so several that are away take no longer than one.
What comes back is somebody else's word: numbers are read as such, and all else is only compared or
shown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common import foreign, log
from zvmsnap.common.errors import (
    DestinationInvalid,
    DestinationUnreachable,
    GivenUp,
    VaultMissing,
    ZfsFailed,
    ZvmsnapError,
)
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.common.waiting import Call
from zvmsnap.config import destination
from zvmsnap.config.destination import SAYS_VAULT, Destination, MemoryWanted
from zvmsnap.config.settings import DestinationTable
from zvmsnap.terminal.render import size
from zvmsnap.zfs import belongings, programs, zfs
from zvmsnap.zfs.belongings import Who
from zvmsnap.zfs.types import Dataset

# ssh itself gives up after 20 s, and says why.
_MACHINE_S = 60.0
_GRACE_S = 5.0
# No question is about snapshots, however many there are. The longest answer is what is delegated:
# 2 MiB, if 10 000 users may do everything.
_ANSWER_MAX_BYTES = 4 << 20
_ENCRYPT_WITH = "age"
_TRIED_ZFS = (2, 1)
_FULL_PERCENT = 95
_NEARLY_FULL_PERCENT = 85
# What `id` prints; a number that has no name there stands alone.
_ID = re.compile(r"[=,](\d+)(?:\(([^)]*)\))?")
_CLONES = "feature@block_cloning"
_CLONING = "/sys/module/zfs/parameters/zfs_bclone_enabled"
# As docs/how-to/offsite.md says.
_NEEDED = frozenset(
    (
        *("canmount", "clone", "create", "hold", "mount", "promote", "readonly", "receive"),
        *("release", "rename", "send"),
    )
)
# Without these nothing arrives; without the others some things do not.
_VITAL = frozenset(("canmount", "create", "mount", "readonly", "receive"))
_ASKED = (*SAYS_VAULT, "available", "used", "encryption", "keystatus")


@dataclass(frozen=True)
class _Place:
    """A destination of the configuration, and the machine that has it."""

    table: DestinationTable
    there: Destination

    @property
    def name(self) -> str:
        return self.there.name

    @property
    def pool(self) -> str:
        return self.there.root.partition("/")[0]

    @property
    def gets_ram(self) -> bool:
        return self.table.memory is not MemoryWanted.NONE

    @property
    def is_encrypted_here(self) -> bool:
        """Is the RAM encrypted before it leaves this host?"""
        return bool(self.table.encrypt_to or self.table.recipients_file)


def _places(facts: Facts) -> Iterator[_Place]:
    for table in facts.config.destination:
        try:
            yield _Place(table, destination.parse(table.target))
        except DestinationInvalid:
            continue  # the configuration was refused for it


def here(facts: Facts) -> Iterator[Finding]:
    """What is needed on this host."""
    for place in _places(facts):
        needs = {
            "syncoid": True,
            "rsync": True,
            "ssh": bool(place.there.host),
            "mbuffer": bool(place.table.bwlimit),
            _ENCRYPT_WITH: place.is_encrypted_here,
        }
        for program, is_needed in needs.items():
            if is_needed and facts.program(program) is None:
                package = {"syncoid": "sanoid", "ssh": "openssh-client"}.get(program, program)
                text = f"sending needs {program}, which is not installed"
                yield red("destination.program", place.name, text, f"apt install {package}")
        for guest in place.table.guests:
            yield from _known(facts, place.name, guest)
        if place.gets_ram and not place.table.keep.has_end:
            text = "RAM that is sent there is kept as long as its points"
            mend = "keep_memory = 7 in its [[destination]]"
            yield yellow("destination.keep-memory", place.name, text, mend)


def _known(facts: Facts, where: str, guest: str) -> Iterator[Finding]:
    names = {each.name for each in facts.guests or ()}
    if "/" in guest or facts.guests is None or facts.findings:
        return
    if guest not in names:
        text = f"is to get guest {guest}, which libvirt does not know"
        yield yellow("destination.guest", where, text, "correct `guests` in config.toml")


def there(facts: Facts) -> Iterator[Finding]:
    """What each machine says, all of them asked at once."""
    by_host: dict[str, list[_Place]] = {}
    for place in _places(facts):
        by_host.setdefault(place.there.host, []).append(place)
    calls = {host: Call(partial(_machine, facts, host, places)) for host, places in by_host.items()}
    for host, places in by_host.items():
        try:
            yield from calls[host].answer(_MACHINE_S + _GRACE_S)
        except GivenUp:
            yield from _silent(places, f"no answer within {_MACHINE_S:.0f} s")


def _silent(places: list[_Place], why: str) -> Iterator[Finding]:
    for place in places:
        host = place.there.host
        mend = f"as root: ssh -o BatchMode=yes {host} true" if host else "zpool status -x"
        yield red("destination.unreachable", place.name, f"{why}: nothing is sent", mend)


def _machine(facts: Facts, host: str, places: list[_Place]) -> list[Finding]:
    """What is found of all destinations on one machine."""
    remote = RemoteHost(host, facts.config.locks_dir, _MACHINE_S, _ANSWER_MAX_BYTES)
    found: list[Finding] = []
    for number, place in enumerate(places):
        try:
            found += _place(facts, place, remote)
        except (DestinationUnreachable, GivenUp) as error:
            return [*found, *_silent(places[number:], log.one_line(error))]
        except (ZvmsnapError, OSError, ValueError) as error:
            text = f"could not be looked at: {log.one_line(error)}"
            found.append(red("destination.unanswered", place.name, text, "look at it there"))
    return found


def _place(facts: Facts, place: _Place, remote: RemoteHost) -> list[Finding]:
    """What is found of one; green if it is nothing."""
    root, said = place.there.root, "is on this host"
    if place.there.host:
        try:
            version = programs.version(remote)
        except ZfsFailed as error:
            mend = "zfs must be in the path of the user's ssh commands there; zfsutils-linux"
            return [red("destination.zfs", place.name, str(error), mend)]
        said = f"has OpenZFS {foreign.line(version, 40)}"
    has = zfs.properties_of(_ASKED, [root], remote).get(root)
    if has is None:
        text = "does not exist there: nothing is sent"
        mend = f"there: zpool import, or zfs create -u -o canmount=off {root}"
        return [red("destination.missing", place.name, text, mend)]
    found = [*_key(facts, place, has), *_vault(place, has, remote)]
    if place.there.host:
        pool = programs.pool(place.pool, remote)
        found += _version(place, version)
        found += _health(place, pool.get("health", ""))
        found += _room(place, has, _number(pool.get("capacity", "")))
        found += _features(facts, place, pool, remote)
        found += _allowed(place, remote)
        found += _rsync(place, remote)
    else:
        found += _room(place, has)
    if found:
        return found
    free = size(_number(has.get("available", "")))
    return [green("destination.there", place.name, f"{said}, and {free} free")]


def _number(said: str) -> int:
    return int(said) if said.isascii() and said.isdecimal() and len(said) <= 20 else 0


def _health(place: _Place, health: str) -> Iterator[Finding]:
    if health != "ONLINE":
        text = f"its pool {place.pool} is {foreign.line(health, 40) or 'of unknown health'}"
        yield yellow(
            "destination.degraded", place.name, text, f"there: zpool status -v {place.pool}"
        )


def _room(place: _Place, has: Mapping[str, str], full_percent: int = 0) -> Iterator[Finding]:
    """Is there room, by the pool and by a quota of the dataset?"""
    free_bytes, used_bytes = _number(has.get("available", "")), _number(has.get("used", ""))
    full = max(100 * used_bytes // max(1, used_bytes + free_bytes), full_percent)
    mend = f"there: zfs list -o space -r {place.there.root}; does sanoid prune there?"
    if full >= _FULL_PERCENT:
        text = f"is {full} % full, with {size(free_bytes)} free: sends will fail"
        yield red("destination.full", place.name, text, mend)
    elif full >= _NEARLY_FULL_PERCENT:
        text = f"is {full} % full, with {size(free_bytes)} free"
        yield yellow("destination.full", place.name, text, mend)


def _key(facts: Facts, place: _Place, has: Mapping[str, str]) -> Iterator[Finding]:
    """What is received as plain blocks is encrypted there, which needs the key."""
    is_encrypted = has.get("encryption", "off") != "off"
    if not is_encrypted or has.get("keystatus") != "unavailable" or place.table.raw:
        return
    if not all(each.encrypted for each in _sent(facts, place)):
        text = "is encrypted, and its key is not loaded: only raw streams arrive"
        mend = f"there: zfs load-key {place.there.root}; or raw = true"
        yield red("destination.key", place.name, text, mend)


def _sent(facts: Facts, place: _Place) -> list[Dataset]:
    """The datasets that go there, as far as they are those of guests here."""
    wanted = place.table.guests
    names = {
        name
        for guest in facts.on_zfs
        for name in guest.datasets
        if not wanted or guest.name in wanted or any(is_within(name, each) for each in wanted)
    }
    return [each for name, each in (facts.datasets or {}).items() if name in names]


def _vault(place: _Place, has: Mapping[str, str], remote: RemoteHost) -> Iterator[Finding]:
    """Is it known where the points go, and may its user write there?"""
    try:
        path = place.there.vault(has)
    except VaultMissing as error:
        text, _, mend = str(error).removeprefix(f"{place.name}: ").partition(": ")
        yield red("destination.vault", place.name, text, mend)
        return
    if _is_so(remote, "-w", path):
        return
    above = path.rpartition("/")[0] or "/"  # a send makes the last directory
    if _is_so(remote, "-e", path) or not _is_so(remote, "-w", above):
        text = f"its user may not write to {path}: datasets arrive, and points do not"
        yield red("destination.vault", place.name, text, "there: chown it to that user")


def _is_so(remote: RemoteHost, what: str, path: str) -> bool:
    return remote.process(["test", what, path]).returncode == 0


def _version(place: _Place, version: str) -> Iterator[Finding]:
    parts = version[:40].split("-")[0].split(".")
    number = tuple(int(each) for each in parts if each.isascii() and each.isdecimal())
    if number < _TRIED_ZFS:
        text = f"has OpenZFS {foreign.line(version, 40)}, and zvmsnap was tried with 2.1 and later"
        yield yellow("destination.zfs", place.name, text, "install a newer one there (backports)")


def _features(
    facts: Facts, place: _Place, can: Mapping[str, str], remote: RemoteHost
) -> Iterator[Finding]:
    """What the pool there must be able to take, and what saves room in it."""
    pool = place.pool
    encrypted = [each.name for each in _sent(facts, place) if each.encrypted]
    if encrypted and can.get("feature@encryption") not in ("enabled", "active"):
        text = f"its pool {pool} cannot take {encrypted[0]}, which is encrypted"
        mend = f"there: zpool set feature@encryption=enabled {pool}"
        yield red("destination.encryption", place.name, text, mend)
    shares = facts.config.image.pages and place.gets_ram and not place.is_encrypted_here
    if not shares or _CLONES not in can:
        return  # older than 2.2: nothing can be done about it but to install another
    if can[_CLONES] == "disabled":
        text = f"its pool {pool} has no block cloning yet: RAM images share nothing there"
        mend = f"there: zpool set feature@block_cloning=enabled {pool}"
        yield yellow("destination.block-cloning", place.name, text, mend)
    elif remote.process(["cat", _CLONING]).stdout.strip() in (b"0", b"N"):
        text = "block cloning is off there: RAM images share nothing"
        mend = f"there: echo 1 > {_CLONING}; in /etc/modprobe.d: options zfs zfs_bclone_enabled=1"
        yield yellow("destination.block-cloning", place.name, text, mend)


def _allowed(place: _Place, remote: RemoteHost) -> Iterator[Finding]:
    """May the user there receive? root may."""
    root = place.there.root
    # `uid=1000(offsite) gid=1000(offsite) groups=…`: these words may be in any language.
    ids = _ID.findall(remote.run("id"))
    if not ids:
        raise ValueError("`id` there names nobody")
    (number, name), *groups = ids
    if number == "0":
        return
    who = Who(name or number, frozenset(group or gid for gid, group in groups))
    missing = sorted(_NEEDED - belongings.may(root, who, remote))
    if missing:
        name = foreign.line(who.name, 40)
        text = f"{name} may not {', '.join(missing)}"
        # A name of a directory service may be anything, and who reads this may paste it.
        mend = f"there, as root: zfs allow {shlex.quote(name)} {','.join(missing)} {root}"
        if _VITAL.isdisjoint(missing):
            yield yellow("destination.allow", place.name, f"{text}: some sends fail", mend)
        else:
            yield red("destination.allow", place.name, f"{text}: nothing arrives", mend)


def _rsync(place: _Place, remote: RemoteHost) -> Iterator[Finding]:
    if remote.process(["rsync", "--version"]).returncode:
        text = "has no rsync: datasets arrive, and points do not"
        yield red("destination.rsync", place.name, text, "there: apt install rsync")


CHECKS = (here, there)
