"""The `zvmsnap` command: runs a hook, the watchdog, or a command of the operator.

`zvmsnap watchdog` is for the pre hook alone (quiesce/watchdog.py), and `zvmsnap keep-view` for
`files` and `mount` (files/opening.py), so no help names them.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exits with the codes of common/errors.py."""
    # sanoid calls hooks thousands of times, so they do not import typer.
    if sys.argv[1:2] == ["hook"] and sys.argv[2:3] not in (["-h"], ["--help"]):
        from zvmsnap.hooks.start import run as hook

        sys.exit(hook(sys.argv[2:]))
    from zvmsnap.hooks import needed

    needed.prefer_own()
    try:
        _run()
    except ImportError as error:
        needed.tell(error)
        sys.exit(2)


def _run() -> None:
    """Run what is no hook. Raises ImportError if a package of others is missing."""
    if sys.argv[1:2] == ["watchdog"]:
        from zvmsnap.recovery.watchdog_daemon import main as watchdog

        sys.exit(watchdog(sys.argv[2:]))
    if sys.argv[1:2] == ["keep-view"]:
        from zvmsnap.files.keeper import main as keep_view

        sys.exit(keep_view())
    # typer 0.15 loads rich wherever it is installed, which takes as long as all the rest, only to
    # draw boxes, which nobody asks it for (rich_markup_mode in cli/main.py).
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from zvmsnap.cli import main as cli

    if cli.only_reads(sys.argv[1:]):
        # A suspended pool keeps a process from ending: the operator gets a line all the same.
        from zvmsnap.hooks import stand_in

        sys.exit(stand_in.run(cli.read))
    cli.main()


if __name__ == "__main__":
    main()
