"""What `zvmsnap check` says: findings, each with a colour, one line, and the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from zvmsnap.common import foreign


class Colour(StrEnum):
    """How bad it is. The exit code of `zvmsnap check` is that of the worst."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"

    @property
    def exit_code(self) -> int:
        """0, 1 and 2."""
        return list(Colour).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `check`: its name, which does not change from version to version, as `sanoid.script-timeout`.
    `subject`: which guest, dataset, file or unit. `mend`: what to do, "" if nothing. `fix`: does
    that, and says what was done; None where that is left to a person.
    """

    colour: Colour
    check: str
    subject: str
    text: str
    mend: str = ""
    fix: Callable[[], str] | None = None

    def line(self) -> str:
        """For people."""
        stop = "" if self.text.endswith((".", "?")) else "."
        mend = f"{stop} {_capital(self.mend)}" if self.mend else ""
        subject = f"{self.subject}: " if self.subject else ""
        said = foreign.line(f"{subject}{self.text}{mend}")
        return f"{self.colour:<6}  {said}  [{self.check}]"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "colour": self.colour,
            "check": self.check,
            "subject": self.subject,
            "text": self.text,
            "mend": self.mend,
            "can_fix": self.fix is not None,
        }


def green(check: str, subject: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(Colour.GREEN, check, subject, text)


def yellow(
    check: str, subject: str, text: str, mend: str, fix: Callable[[], str] | None = None
) -> Finding:
    """It works, but less well than it could, or not for ever."""
    return Finding(Colour.YELLOW, check, subject, text, mend, fix)


def red(
    check: str, subject: str, text: str, mend: str, fix: Callable[[], str] | None = None
) -> Finding:
    """Points are missing or worthless, or guests are in danger."""
    return Finding(Colour.RED, check, subject, text, mend, fix)


def worst(findings: Iterable[Finding]) -> Colour:
    """The worst colour; green if there is none."""
    return max((each.colour for each in findings), key=list(Colour).index, default=Colour.GREEN)


def _capital(text: str) -> str:
    # A command keeps its letters: it is what one types.
    first = text.partition(" ")[0]
    is_word = first.isalpha() and first not in _COMMANDS
    return text[:1].upper() + text[1:] if is_word else text


_COMMANDS = frozenset(("apt", "chmod", "systemctl", "virsh", "zfs", "zpool", "zvmsnap"))
