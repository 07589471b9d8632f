"""Page images: what they take on the disk and on the way, and how long they take to make.

All cells have the same RAM images, of a Linux guest that does nothing but write a number to two
disks every few seconds: so vaults differ, and nothing else. Programs' bytes fill its page cache.
Nothing runs any more when they are taken apart, by the code that publishes.

What lies on the disk says the pool, before and after. What goes over says the network interface
between the two hosts, in both directions, with all that ssh and IP add to it; snapshots of disks
have gone over before.
"""

from __future__ import annotations

import json
import time
from shlex import quote
from typing import Any

import far
import scenario

from bench import scene
from bench.cells import CHANGES, SENT, Cell
from bench.scene import INSIDE, Measured
from labkit import guests, linux
from labkit.api import Lab

FIRST, SECOND, LATER = "first", "second", "later"
SHA256SUM, COPY = "sha256sum", "cp"
APART_FIRST, APART = "taking apart, first", "taking apart, later"
REBUILT, EXPORTED = "rebuilding", "zvmsnap export-memory"
POOL_SAYS, VAULT_SAYS = "pool", "vault"

MEMORY_MIB, CACHED_MIB, IDLE_S = 512, 192, 45
_COUNT = 4
_POOL, _PLAIN = "cheap", "cheap/plain"
_DATASET = "cheap/vault"  # which is at scenario.VAULT
_STAGED = f"{scenario.STAGING}/bench.img"
_MADE = f"{scenario.STAGING}/made.img"
_OWN = f"PYTHONPATH=/opt/zvmsnap python3 {INSIDE}/page_images.py"
_FILES = "/var/lib/libvirt/images/debian/files.raw"
# What a boot begins (timers, caches of programs) is over by then, also in nested emulation.
_SETTLE_S = 300
_LIMIT_S = 900.0
_MIB = 1 << 20


def measure(lab: Lab, cell: Cell, repeats: int) -> Measured:
    """One cell, with as many images after the first one as there are repeats."""
    scenario.stage(lab, f"bench-images-{MEMORY_MIB}", _ready, _taken)
    scene.carry(lab)
    scenario.configure(lab)
    count = min(1 + repeats, _COUNT)
    if cell.words[0] == SENT:
        return _sent(lab, cell.words[1], min(count, 3))
    if cell.words[0] == CHANGES:
        return _changes(lab, count)
    record, compression = cell.words
    return _stored(lab, record, compression, count)


# -- the images


def _ready(lab: Lab) -> None:
    scene.prepare(lab, "linux")


def _taken(lab: Lab) -> None:
    """The guest with more RAM and a page cache; its images, as libvirt wrote them, in a dataset."""
    _boot(lab)
    scenario.configure(lab, "[image]\npages = false")
    for number in range(1, _COUNT + 1):
        lab.run(f"sleep {IDLE_S}")
        take = f"zvmsnap take {linux.NAME} --name {_name(number)}"
        lab.run(take, timeout_s=scenario.ROUND_LIMIT_S)
    taken = [point.manifest["memory"] for point in scenario.points(lab, linux.NAME)]
    assert [memory and memory["file"] for memory in taken] == ["memory.img"] * _COUNT, taken
    lab.run(f"virsh -q destroy {linux.NAME} && zfs rename {_DATASET} {_PLAIN}")


def _name(number: int) -> str:
    return f"image{number}"


def _plain(number: int) -> str:
    return f"/{_PLAIN}/{linux.NAME}/{_name(number)}"


def _paged(number: int) -> str:
    return f"{scenario.VAULT}/{linux.NAME}/{_name(number)}"


def _boot(lab: Lab) -> None:
    """Boot it with more RAM and one more disk, which it reads and keeps open: that stays cached."""
    lab.run(
        f"virsh -q destroy {linux.NAME} && "
        "find /usr/bin /usr/lib -xdev -type f -print0 | sort -z | xargs -0 cat 2> /dev/null | "
        f"head -c {CACHED_MIB}M > {_FILES} && "
        f"virsh -q setmaxmem {linux.NAME} {MEMORY_MIB}M --config && "
        f"virsh -q setmem {linux.NAME} {MEMORY_MIB}M --config && "
        f"virsh -q attach-disk {linux.NAME} {_FILES} vdc --config --subdriver raw --mode readonly",
        timeout_s=_LIMIT_S,
    )
    since_byte = guests.serial_size_bytes(lab, linux.NAME)
    lab.run(f"virsh -q start {linux.NAME}")
    linux.wait_agent(lab, timeout_s=_LIMIT_S)
    _in_guest(lab, "exec 3< /dev/vdc; cat <&3 > /dev/null && { sleep 1000000 > /dev/null & }")
    lab.run(f"sleep {_SETTLE_S}", timeout_s=_LIMIT_S)
    linux.wait_writes(lab, linux.NAME, 3, since_byte=since_byte, timeout_s=_LIMIT_S)


def _in_guest(lab: Lab, script: str) -> None:
    begun: Any = linux.agent(lab, "guest-exec", path="/bin/sh", arg=["-c", script])
    deadline_s = time.monotonic() + _LIMIT_S
    while True:
        status: Any = linux.agent(lab, "guest-exec-status", pid=begun["pid"])
        if status["exited"]:
            assert status["exitcode"] == 0, status
            return
        assert time.monotonic() < deadline_s, script
        time.sleep(1)


# -- on the disk


def _stored(lab: Lab, record: str, compression: str, count: int) -> Measured:
    """Take the images apart, one after the other, and bring the last one back."""
    measured = Measured()
    _make_vault(lab, record, compression)
    before_mib = _pool(lab)["allocated_mib"]
    for number in range(1, count + 1):
        lab.run(f"cp {_plain(number)}/memory.img {_STAGED}", timeout_s=_LIMIT_S)
        _command(lab, measured, SHA256SUM, "sha256sum", _STAGED)
        measured.add(APART_FIRST if number == 1 else APART, **_store(lab, number))
        after = _pool(lab)
        measured.add(_which(number), disk_mib=after["allocated_mib"] - before_mib)
        before_mib = after.pop("allocated_mib")
    measured.add(POOL_SAYS, **after)
    said = _figures(lab, f"zfs get -Hpo property,value used,logicalused {_DATASET}")
    measured.add(VAULT_SAYS, **said)
    _time_back(lab, measured, count)
    return measured


def _which(number: int) -> str:
    return {1: FIRST, 2: SECOND}.get(number, LATER)


def _make_vault(lab: Lab, record: str, compression: str) -> None:
    """An empty vault, which is the one that was used so far."""
    lab.run(
        f"zfs create -o recordsize={record} -o compression={compression} {_DATASET} && "
        f"chmod 700 {scenario.VAULT} && cp -p /{_PLAIN}/.zvmsnap-vault {scenario.VAULT}/"
    )


def _store(lab: Lab, number: int) -> dict[str, float]:
    _forget_cached(lab)
    return _own(lab, "store", _STAGED, _plain(number), scenario.VAULT)


def _time_back(lab: Lab, measured: Measured, count: int) -> None:
    """The last image back in staging, in three ways; `cp` has it as libvirt wrote it."""
    plain = f"{scenario.VAULT}/plain.img"
    lab.run(f"cp {_plain(count)}/memory.img {plain}; zpool sync {_POOL}", timeout_s=_LIMIT_S)
    for _ in range(1, count):
        _command(lab, measured, COPY, "cp", plain, _MADE)
        _forget_cached(lab)
        measured.add(REBUILT, **_own(lab, "rebuild", _paged(count), _MADE))
        point = f"{linux.NAME}@{_name(count)}"
        _command(lab, measured, EXPORTED, "zvmsnap", "export-memory", point, _MADE)
    _forget_cached(lab)


def _forget_cached(lab: Lab) -> None:
    """Nothing that was read is in memory, and nothing is left of the last file that was made."""
    lab.run(f"rm -f {_MADE}; sync; echo 3 > /proc/sys/vm/drop_caches", timeout_s=_LIMIT_S)


def _command(lab: Lab, measured: Measured, way: str, *argv: str) -> None:
    _forget_cached(lab)
    one = scene.measured(lab, {way: scene.command(*argv)}, 1, warm=False)
    measured.add(way, **{measure: each[0] for measure, each in one.figures[way].items()})
    for note in one.notes:
        measured.note(note)


def _own(lab: Lab, *words: str) -> dict[str, Any]:
    said = lab.run(f"{_OWN} {' '.join(map(quote, words))}", timeout_s=_LIMIT_S).stdout
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures


def _pool(lab: Lab, pool: str = _POOL) -> dict[str, float]:
    """What the pool says, once all is written and what was freed is free."""
    lab.run(f"for _ in 1 2 3 4; do zpool sync {pool}; done", timeout_s=_LIMIT_S)
    names = "allocated,bcloneused,bclonesaved,bcloneratio"
    return _figures(lab, f"zpool get -Hpo property,value {names} {pool}")


def _figures(lab: Lab, command: str) -> dict[str, float]:
    """Properties by their names: bytes in MiB, the ratio of cloned blocks as it is."""
    pairs = (line.split("\t") for line in lab.run(command).stdout.splitlines())
    return {
        name if name == "bcloneratio" else f"{name}_mib": float(value.rstrip("x"))
        / (1 if name == "bcloneratio" else _MIB)
        for name, value in pairs
    }


# -- on the way


def _sent(lab: Lab, record: str, count: int) -> Measured:
    """Send each image when it is the newest point, over ssh to another network namespace."""
    measured = Measured()
    far.make(lab)
    lab.run(f"zfs set recordsize={record} compression=zstd {far.VAULT.removeprefix('/')}")
    _make_vault(lab, "16K", "zstd")
    # The network is asked only for what RAM needs.
    for number in range(1, count + 1):
        lab.run(f"cp {_plain(number)}/memory.img {_STAGED}", timeout_s=_LIMIT_S)
        _store(lab, number)
        far.send(lab, "--memory", "none", linux.NAME, far.DESTINATION)
        stored_mib, over_mib = _pool(lab, "backup")["allocated_mib"], _over_mib(lab)
        begun_s = time.monotonic()
        report = far.send(lab, linux.NAME, far.DESTINATION)
        measured.add(
            _which(number),
            took_s=time.monotonic() - begun_s,
            wire_mib=_over_mib(lab) - over_mib,
            rsync_mib=report["points_bytes"] / _MIB,
            disk_mib=_pool(lab, "backup")["allocated_mib"] - stored_mib,
        )
        if report["error"] or [point["memory_bytes"] > 0 for point in report["points"]] != [True]:
            measured.note(f"{_which(number)}: {report['error'] or report['points']}")
    return measured


def _over_mib(lab: Lab) -> float:
    counters = "/sys/class/net/near0/statistics/{tx,rx}_bytes"
    return sum(map(int, lab.run(f"cat {counters}").stdout.split())) / _MIB


# -- what changes


def _changes(lab: Lab, count: int) -> Measured:
    """Of each image, how much differs from the one before, in pieces of several sizes."""
    measured = Measured()
    _make_vault(lab, "128K", "lz4")
    for number in range(1, count + 1):
        lab.run(f"cp {_plain(number)}/memory.img {_STAGED}", timeout_s=_LIMIT_S)
        _store(lab, number)
        if number > 1:
            files = [f"{_paged(each)}/memory.pages" for each in (number - 1, number)]
            for size, figures in _own(lab, "changed", *files).items():
                measured.add(size, **figures)
    return measured
