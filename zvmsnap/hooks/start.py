"""Starts a hook; what it works with is loaded only if there is work."""

from __future__ import annotations

import os

from zvmsnap.hooks import idle

_EXIT_USAGE = 2  # as common/errors, which loads what is not needed here


def run(arguments: list[str]) -> int:
    """Run a hook, so that nobody waits for the end of what hangs; returns the exit code.

    If there is work, it does not return, but ends this process with it.
    """
    if not idle.has_nothing_to_do(arguments, os.environ):
        from zvmsnap.hooks import needed

        needed.prefer_own()
        try:
            from zvmsnap.hooks import main
        except ImportError as error:
            needed.tell(error)
            return _EXIT_USAGE
        main.in_child(arguments)
    return 0
