"""Asks sanoid of which datasets it takes recursive snapshots (`zfs snapshot -r`).

No variable of the hooks says that, nor does a section of sanoid.conf by itself: what counts of a
key that stands there twice, or of a section below another one's dataset, depends on the version of
sanoid and of its parser, and on the sequence of sections. So the very program that has called the
hook rehearses its round:

    sanoid --take-snapshots --readonly --verbose

It takes nothing, calls no hook, and prints `taking snapshot tank/vm@autosnap_... (zfs recursive)`.
Its cache is its own: without snapshots, so that all are due; with the datasets that the caller has
listed (sanoid 2.3), so that both see the same ones. (sanoid 2.0 has but one cache, which the caller
has just brought up to date.) At the end of its round, sanoid up to 2.2 lists all snapshots of the
host once more: that is not waited for. (By sanoid 2.0 not for long: who kills it leaves its lock to
the caller.) It is asked once in a round, as the caller has read sanoid.conf once; and only if a
dataset has others below it.

| the caller                  | sanoid.conf    | what is asked  | without an answer       |
|-----------------------------|----------------|----------------|-------------------------|
| is sanoid, under any name   | any            | that program   | an error; not recursive |
| is something else (by hand) | exists         | sanoid in PATH | an error; not recursive |
| is something else (by hand) | does not exist | nothing        | not recursive           |

Not recursive is the safe assumption: no guest is touched that is not surely concerned. Whether it
was right, post finds out (hooks/surprise).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from zvmsnap.common import foreign, log
from zvmsnap.common.errors import GivenUp, SanoidUnanswered
from zvmsnap.common.process import run_until, uptime_s
from zvmsnap.hooks import sanoid
from zvmsnap.hooks.callers import Caller
from zvmsnap.journal.round import Round

_LIMIT_S = 60.0
_COMPLETE_LIMIT_S = 30.0  # of sanoid 2.0, if it has said all
_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # cron has less
_CONFIGDIR = "/etc/sanoid"
_CACHE_DIR = "/var/cache/sanoid"
_REHEARSE = ("--take-snapshots", "--readonly", "--verbose")
_RECURSIVE = re.compile(r"taking snapshot (.+)@\S+ \(zfs recursive\)")
# take_snapshots() of sanoid up to 2.2: its last line, which Perl prints before it starts `zfs get`.
_COMPLETE = re.compile(
    rb"^INFO: taking snapshots\.\.\.\n(?:.*\n)*"
    rb"INFO: (?:cache (?:forcibly )?expired - updating from zfs list|deferring cache update - )",
    re.MULTILINE,
)


class Rehearsal:
    """What the caller is going to do. `unanswered`: it has not said so when it was asked."""

    def __init__(self, caller: Caller, configured: str, round_: Round) -> None:
        self._caller = caller
        self._configured = configured
        self._round = round_
        self.unanswered = False

    def takes_recursively(self, dataset: str) -> bool:
        """Does it take `zfs snapshot -r` of that dataset?"""
        notes = self._round.notes
        # Who calls hooks by hand, from one shell, may change sanoid.conf between two of them.
        if self._caller.sanoid and (notes.unanswered or notes.recursive is not None):
            return dataset in (notes.recursive or ())
        try:
            recursive = self._ask()
        except SanoidUnanswered as error:
            self.unanswered = True
            self._round.note(unanswered=str(error))
            log.plain().error(
                "%s: so in this round no snapshot counts as recursive, and guests on datasets "
                "below %s and others are left alone; zfs set zvmsnap:recursive=on|off says it "
                "beforehand",
                error,
                dataset,
            )
            return False
        self._round.note(recursive=recursive)
        return dataset in recursive

    def _ask(self) -> tuple[str, ...]:
        """The datasets of which it takes recursive snapshots. Raises SanoidUnanswered."""
        import tempfile  # once in a round, and it loads much

        words = self._caller.command_line
        configdir = self._configured or sanoid.option(words, "configdir")
        conf = self._caller.path(configdir or _CONFIGDIR) / "sanoid.conf"
        if not self._caller.sanoid and not os.path.lexists(conf):
            return ()
        listed = self._caller.path(sanoid.option(words, "cache-dir") or _CACHE_DIR) / "datasets.txt"
        try:
            with tempfile.TemporaryDirectory(dir=self._round.directory) as cache:
                Path(cache, "snapshots.txt").touch()
                if listed.is_file():
                    shutil.copyfile(listed, Path(cache, "datasets.txt"))
                own = [f"--configdir={conf.parent}"] if configdir else []
                program = _program(self._caller)
                if sanoid.is_before_2_1(Path(program[-1])):
                    return _recursive([*program, *own], _COMPLETE_LIMIT_S)
                own += [f"--cache-dir={cache}", f"--run-dir={cache}"]
                return _recursive([*program, *own], 0)
        except OSError as error:
            raise SanoidUnanswered(f"sanoid cannot be asked what it snapshots: {error}") from error


def _program(caller: Caller) -> tuple[str, ...]:
    """What starts the caller's sanoid. Raises SanoidUnanswered.

    Whatever is started here must know --readonly, or the hooks would call themselves.
    """
    if not caller.sanoid:
        path = os.pathsep.join([os.environ.get("PATH", ""), _PATH])
        found = shutil.which("sanoid", path=path)
        if not found:
            raise SanoidUnanswered("sanoid cannot be asked what it snapshots: it is not in PATH")
        return (found,)
    script = caller.sanoid[-1]
    if "/" in script and not sanoid.reads_like_sanoid(Path(script)):
        raise SanoidUnanswered(f"{script} cannot be asked what it snapshots: it is no sanoid")
    return caller.sanoid


def _recursive(words: Sequence[str], at_least_s: float) -> tuple[str, ...]:
    """What it prints; its end is waited for that long, even if it has said all."""
    what = "sanoid, asked what it snapshots,"
    begun_s = uptime_s()

    def is_complete(printed: bytes) -> bool:
        return uptime_s() - begun_s >= at_least_s and _COMPLETE.search(printed) is not None

    try:
        done = run_until([*words, *_REHEARSE], is_complete, _LIMIT_S)
    except GivenUp as error:
        raise SanoidUnanswered(f"{what} does not answer: {error}") from error
    if done.returncode:
        why = foreign.last_line(done.stderr) or "no reason given"
        raise SanoidUnanswered(f"{what} has failed ({done.returncode}): {why}")
    matches = map(_RECURSIVE.fullmatch, os.fsdecode(done.stdout).split("\n"))
    return tuple(sorted({match[1] for match in matches if match}))
