"""What is under way on this host, or was interrupted and waits for `zvmsnap recover`."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from zvmsnap.backup.work import Works, in_words
from zvmsnap.config import capture_name
from zvmsnap.config.settings import Config
from zvmsnap.files import ending
from zvmsnap.flatten.work import Flattening, Flattenings
from zvmsnap.journal import describe, late, other_versions
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.waiting import WaitingEntries
from zvmsnap.points import vault
from zvmsnap.recovery import interrupted


@dataclass(frozen=True)
class Unfinished:
    """Work in words; somebody is at it, or not."""

    words: str
    is_under_way: bool = False


def unfinished(settings: Config, domain: str | None = None) -> Iterator[Unfinished]:
    """All unfinished work, or that on one guest."""
    journal_dir = settings.journal_dir
    entries = [*Journal(journal_dir).entries(), *late.entries(journal_dir)]
    waiting = WaitingEntries(journal_dir).all()
    operations = Operations(journal_dir).all()
    for entry in entries:
        if domain in (None, entry.domain):
            words = f"{entry.domain}: {describe.work(entry)} is {describe.progress(entry)}"
            yield Unfinished(words, entry.owner.is_alive())
    for entry in waiting:
        if domain in (None, entry.domain):
            yield Unfinished(f"{entry.domain}: {describe.waiting(entry)}")
    for operation in operations:
        if domain in (None, operation.domain):
            words = f"{operation.domain}: {describe.operation(operation)}"
            yield Unfinished(words, operation.owner.is_alive())
    for work in Works(settings).all()[0]:
        if domain in (None, work.domain):
            yield Unfinished(f"{work.domain}: {in_words(work)}", work.owner.is_alive())
    fetches = Fetches(journal_dir)
    yield from map(Unfinished, fetches.interrupted(settings))
    views, unreadable = ending.dead(settings)
    flattenings, more = Flattenings(journal_dir).all()
    yield from map(Unfinished, (*unreadable, *more))
    for view in views:
        if domain in (None, view.domain):
            yield Unfinished(f"{view.domain}: {interrupted.of_view(view)}: zvmsnap recover ends it")
    for each in flattenings:
        if domain in (None, each.domain):
            yield _flattening(each)
    for file in other_versions.files(journal_dir):
        if domain in (None, file.uuid):
            yield Unfinished(str(file))
    captures = {each.capture for each in (*entries, *waiting, *operations)}
    yield from _in_vault(settings, domain, captures, fetches.guests())


def _flattening(work: Flattening) -> Unfinished:
    if work.owner.is_alive():
        disks = ", ".join(work.targets)
        words = f"flatten of {disks} is under way (pid {work.owner.pid})"
        return Unfinished(f"{work.domain}: {words}", is_under_way=True)
    return Unfinished(f"{work.domain}: {interrupted.of_flattening(work)}: zvmsnap recover ends it")


def _in_vault(
    settings: Config, domain: str | None, captures: Container[str], fetched: Container[str]
) -> Iterator[Unfinished]:
    """Points that are half there, and that nothing else speaks of."""
    for half in vault.unfinished(settings.vault_dir):
        if domain is not None and half.directory.parent.name != vault.folder_of(domain):
            continue
        capture = half.capture
        is_fetched = capture is not None and capture_name.uuid_of(capture) in fetched
        if (capture is None or capture not in captures) and not is_fetched:
            what = "publishing" if capture else "removal"
            yield Unfinished(
                f"{half.directory}: its {what} was interrupted; zvmsnap recover ends it"
            )
