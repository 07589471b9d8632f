"""libvirt, QEMU and ZFS: versions and their known faults, configuration, and the state of pools."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zvmsnap.check.facts import Facts, answer_of
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.virt import qemu_conf

_TRIED_LIBVIRT = (9, 0)
_TRIED_QEMU = (7, 2)
_TRIED_ZFS = (2, 1)
_FULL_PERCENT = 95
_NEARLY_FULL_PERCENT = 85
# `snapshot='manual'`, by which level `paused` keeps a guest paused.
_MANUAL_SINCE = (8, 2)
# Reverting to internal snapshots fails in these: release notes of libvirt.
_BAD_REVERT = ((11, 2), (11, 4))
_SELINUX = "security.selinux"
_IMAGES = "virt_image_t"
_MODULAR = "virtqemud"
_MONOLITHIC = "libvirtd"


def versions(facts: Facts) -> Iterator[Finding]:
    """Are they versions that zvmsnap was tried with, and what is known of them?"""
    host = facts.host
    if host is None:
        return
    try:
        known = answer_of(host.versions)
    except ZvmsnapError as error:
        yield red("libvirt.versions", "libvirt", str(error), "systemctl status libvirtd virtqemud")
        return
    libvirt, qemu = number(known["libvirt"]), number(known["qemu"])
    if libvirt < _MANUAL_SINCE and _pauses(facts):
        text = f"{known['libvirt']} knows no level `paused`, which is wanted"
        yield red("libvirt.paused", "libvirt", text, "install libvirt 8.2 or later")
    elif libvirt < _TRIED_LIBVIRT or qemu < _TRIED_QEMU:
        text = f"libvirt {known['libvirt']} and QEMU {known['qemu']} were not tried with zvmsnap"
        yield yellow("libvirt.version", "", text, "zvmsnap verify --boot each new point")
    else:
        text = f"libvirt {known['libvirt']}, QEMU {known['qemu']}, CPU {known['host_cpu']}"
        yield green("libvirt.version", "", text)
    if _BAD_REVERT[0] <= libvirt < _BAD_REVERT[1]:
        yield from _internal_snapshots(facts, known["libvirt"])


def number(version: str) -> tuple[int, ...]:
    """`11.3.0` as numbers."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _pauses(facts: Facts) -> bool:
    wanted = [modes for each in facts.on_zfs if (modes := facts.levels(each))]
    return any(ConsistencyLevel.PAUSED in modes.levels for modes in wanted)


def _internal_snapshots(facts: Facts, version: str) -> Iterator[Finding]:
    for guest in facts.on_zfs:
        try:
            names = answer_of(guest.guest.snapshot_names)
        except ZvmsnapError:
            continue
        if names:
            text = f"libvirt {version} fails to revert to internal snapshots, such as {names[0]}"
            mend = "use points of zvmsnap, or libvirt 11.4 and later"
            yield yellow("libvirt.revert", guest.name, text, mend)


def images(facts: Facts) -> Iterator[Finding]:
    """Can RAM images that libvirt writes now be loaded?"""
    path = facts.path(str(qemu_conf.PATH))
    if why := qemu_conf.why_unloadable(path):
        text, _, mend = why.rpartition("; ")
        yield red("libvirt.image-format", "", text, mend)


def daemons(facts: Facts) -> Iterator[Finding]:
    """Of modular and monolithic daemons, is only one kind at work?"""
    if facts.host is None or not facts.path("/run/systemd/system").is_dir():
        return
    said = (
        facts.ask(
            "systemctl",
            "show",
            "--property=Id,ActiveState",
            f"{_MODULAR}.service",
            f"{_MONOLITHIC}.service",
        )
        or ""
    )
    active = [
        name
        for name in (_MODULAR, _MONOLITHIC)
        if f"Id={name}.service" in said and _is_active(said, name)
    ]
    if len(active) > 1:
        text = "libvirtd and virtqemud are both active: each knows other guests"
        mend = "disable one of the two: libvirt.org/daemons.html"
        yield red("libvirt.daemons", "libvirt", text, mend)


def _is_active(said: str, name: str) -> bool:
    block = next(each for each in said.split("\n\n") if f"Id={name}.service" in each)
    return "ActiveState=active" in block


def confinement(facts: Facts) -> Iterator[Finding]:
    """AppArmor and SELinux: can guests be brought back from overlays, and reach staging?"""
    if _reads(facts, "/sys/module/apparmor/parameters/enabled") == "Y":
        if facts.program("apparmor_parser") is None:
            text = (
                "is not installed, and AppArmor is on: with libvirt before 12.1 a guest that was "
                "started on its overlay could not be brought back"
            )
            yield red("libvirt.apparmor", "apparmor_parser", text, "apt install apparmor")
        else:
            text = (
                "is on; what it denies to guests on overlays, zvmsnap allows when it merges these"
            )
            yield green("libvirt.apparmor", "AppArmor", text)
    if _reads(facts, "/sys/fs/selinux/enforce") == "1":
        yield from _label(facts.config.staging_dir)


def _label(staging: Path) -> Iterator[Finding]:
    try:
        label = os.getxattr(staging, _SELINUX).decode(errors="replace").rstrip("\0")
    except OSError:
        return  # it is made by the first run, or its file system has no labels
    if _IMAGES not in label:
        text = f"{staging} has the SELinux label {label}: QEMU may not reach its overlays there"
        mend = f"semanage fcontext -a -t {_IMAGES} '{staging}(/.*)?'; restorecon -R {staging}"
        yield yellow("libvirt.selinux", "staging", text, mend)


def _reads(facts: Facts, path: str) -> str:
    try:
        return facts.path(path).read_text().strip()
    except OSError:
        return ""


def pools(facts: Facts) -> Iterator[Finding]:
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


def zfs_version(facts: Facts) -> Iterator[Finding]:
    """Of the module in the kernel, and of the programs."""
    try:
        module = facts.path("/sys/module/zfs/version").read_text().strip()
    except OSError:
        return
    number = tuple(int(part) for part in module.split("-")[0].split(".") if part.isdecimal())
    if number < _TRIED_ZFS:
        text = f"{module} is older than 2.1, with which zvmsnap was tried"
        yield yellow("zfs.version", "OpenZFS", text, "install a newer one (backports)")
    said = (facts.ask("zfs", "version") or "").splitlines()
    programs = said[0].removeprefix("zfs-") if said else module
    if programs.split("-")[0] != module.split("-")[0]:
        text = f"programs are {programs}, the module in the kernel is {module}"
        yield yellow("zfs.versions", "OpenZFS", text, "reboot, so that the module is the new one")
    else:
        yield green("zfs.version", "OpenZFS", f"{module} in the kernel and in the programs")


CHECKS = (versions, images, daemons, confinement, pools, zfs_version)
