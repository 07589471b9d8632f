"""The `zvmsnap` command: hooks go straight to their room, everything else to the CLI."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exits with the codes that the README documents."""
    # sanoid calls hooks thousands of times: they must not pay for typer's import.
    if sys.argv[1:2] == ["hook"] and sys.argv[2:3] not in (["-h"], ["--help"]):
        from zvmsnap.hooks.main import main as hook

        sys.exit(hook(sys.argv[2:]))
    if sys.argv[1:2] == ["guard"]:
        from zvmsnap.recovery.watchdog_daemon import main as guard

        sys.exit(guard(sys.argv[2:]))
    from zvmsnap.cli.main import main as cli

    cli()


if __name__ == "__main__":
    main()
