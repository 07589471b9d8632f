"""The hooks in sanoid.conf: are they named, there, and called as they must be?"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import zvmsnap
from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.config.sanoid_conf import Policy

# A key of sanoid.conf, and what its value must name.
HOOKS = {
    "pre_snapshot_script": ("pre-snapshot", "hook pre"),
    "post_snapshot_script": ("post-snapshot", "hook post"),
    "pruning_script": ("pruning", "hook prune"),
}
_WHY = {
    "pre_snapshot_script": "points have no RAM",
    "post_snapshot_script": "guests stay on their overlays until the watchdog brings them back",
    "pruning_script": "RAM images stay when their snapshots go, until zvmsnap prune",
}
# With one of these sanoid starts the hook by a shell, which lives on when sanoid dies.
_SHELL = re.compile(r"[$&*(){}\[\]'\";\\|?<>~`\n]")
_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


def _tops(facts: Facts) -> dict[str, list[str]]:
    """The datasets that sanoid snapshots for guests, and these guests."""
    tops: dict[str, list[str]] = {}
    for guest in facts.on_zfs:
        for path in facts.tops_of(guest):
            tops.setdefault(path, []).append(guest.name)
    return tops


def _policies(facts: Facts) -> Iterator[Policy]:
    """Of the datasets of guests, and all that are below these."""
    if facts.sanoid:
        for top in _tops(facts):
            if policy := facts.sanoid.policies.get(top):
                yield policy


def named(facts: Facts) -> Iterator[Finding]:
    """Does each dataset of a guest have its three hooks?"""
    for policy in _policies(facts):
        for key, names in HOOKS.items():
            value = policy.keys.get(key, "").strip()
            subject = f"[{policy.section}]"
            if not value:
                mend = f"write {key} = {hook_command(facts.root, key)}; zvmsnap init proposes it"
                text = f"has no {key}: {_WHY[key]}"
                make = yellow if key == "pruning_script" else red
                yield make(f"hooks.no-{names[0]}", subject, text, mend)
            elif not any(name in value for name in (*names, *_old_names(key))):
                text = f"{key} = {value} is no hook of zvmsnap: {_WHY[key]}"
                mend = f"let it call {hook_command(facts.root, key)}"
                yield yellow(f"hooks.other-{names[0]}", subject, text, mend)


def _old_names(key: str) -> tuple[str, ...]:
    """What an administrator may have called a script that calls the hook, by its key."""
    return (key.removesuffix("_script").replace("_", "-"),)


def hook_command(root: Path, key: str) -> str:
    """What sanoid is to call: the hook of the package, or of this checkout, or the command."""
    name, words = HOOKS[key]
    checkout = Path(zvmsnap.__file__).resolve().parents[1]
    for path in (root / "usr/lib/zvmsnap/hooks" / name, checkout / "hooks" / name):
        if path.exists():
            return str(path)
    return f"{shutil.which('zvmsnap') or '/usr/local/bin/zvmsnap'} {words}"


def runnable(facts: Facts) -> Iterator[Finding]:
    """Can sanoid start what is named?"""
    if not facts.sanoid:
        return
    for value, keys in sorted(_values(facts).items()):
        subject = ", ".join(sorted(keys))
        words = value.split()
        path = facts.path(words[0]) if words[0].startswith("/") else facts.program(words[0])
        if "#" in value:
            text = f"{value!r}: sanoid passes what follows # to the hook: it is no comment"
            yield red("hooks.comment", subject, text, "let the comment stand on a line of its own")
        elif _SHELL.search(value):
            text = f"{value!r} is started by a shell, which hides from the hook that sanoid died"
            yield yellow("hooks.shell", subject, text, "name program and arguments alone")
        if path is None or not path.exists():
            text = f"{words[0]} does not exist: sanoid counts that as a hook that failed"
            yield red("hooks.missing", subject, text, "correct the path; zvmsnap init proposes it")
        elif not os.access(path, os.X_OK):
            text = f"{words[0]} is not executable: sanoid counts that as a hook that failed"
            fix = partial(_make_executable, path)
            yield red("hooks.not-executable", subject, text, f"chmod +x {words[0]}", fix)
        else:
            yield from _of_this_version(words[0], path)


def _values(facts: Facts) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for policy in _policies(facts):
        for key in HOOKS:
            if value := policy.keys.get(key, "").strip():
                values.setdefault(value, set()).add(key)
    return values


def _make_executable(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | (mode & 0o444) >> 2)
    return f"{path} is executable now"


def _of_this_version(named_as: str, path: Path) -> Iterator[Finding]:
    package = path.resolve().parents[1] / "zvmsnap" / "__init__.py"
    try:
        found = _VERSION.search(package.read_text())
    except OSError:
        return
    if found and found[1] != zvmsnap.__version__:
        text = f"is zvmsnap {found[1]}, and this command {zvmsnap.__version__}"
        mend = "install one version for both: a file of another version is never worked on"
        yield yellow("hooks.version", named_as, text, mend)


def keys(facts: Facts) -> Iterator[Finding]:
    """The keys of sanoid on which the hooks depend."""
    for policy in _policies(facts):
        subject = f"[{policy.section}]"
        timeout = policy.keys.get("script_timeout", "")
        if _is_limited(timeout):
            text = (
                f"script_timeout = {timeout}: when that is over, sanoid itself dies, before its "
                "snapshot, and the hook does not"
            )
            yield red("hooks.script-timeout", subject, text, "set script_timeout = 0")
        if policy.is_on("no_inconsistent_snapshot"):
            text = "no_inconsistent_snapshot is on: if pre fails there is no snapshot, and no post"
            yield red("hooks.no-inconsistent", subject, text, "set no_inconsistent_snapshot = no")
        elif not policy.is_on("force_post_snapshot_script"):
            text = (
                "force_post_snapshot_script is off: if pre fails for one guest, post runs for none"
            )
            mend = "set force_post_snapshot_script = yes"
            yield red("hooks.force-post", subject, text, mend)
        if not policy.is_on("autoprune") and policy.keys.get("pruning_script"):
            text = "autoprune is off: snapshots and RAM images stay for ever"
            yield yellow("hooks.autoprune", subject, text, "set autoprune = yes")
        if not any(policy.counts.values()):
            text = "keeps no snapshot of any type: none is taken"
            yield red("hooks.no-type", subject, text, "set hourly = 24, as in sanoid.conf.example")


def _is_limited(timeout: str) -> bool:
    """As sanoid compares it: as a text (`gt 0`)."""
    return timeout > "0" and re.match(r"\s*[1-9]", timeout) is not None


def all_well(facts: Facts) -> Iterator[Finding]:
    """That hooks are named, if they are."""
    for top, guests in sorted(_tops(facts).items()):
        policy = facts.snapshotted.get(top)
        if policy and all(policy.keys.get(key, "").strip() for key in HOOKS):
            yield green("hooks.named", top, f"has its hooks, for {', '.join(sorted(guests))}")


CHECKS = (named, runnable, keys, all_well)
