"""The commands of an operator: list, show, prune."""

import typer

app = typer.Typer()


def main() -> None:
    app()
