"""Which code it is: of the product, and of the tests. What was made or proven by it is of no other.

Asked once, when a run begins: who edits while it runs has stages and results of the code of then.
"""

from functools import cache
from pathlib import Path

from labkit import settings

# What is copied into the lab (see Lab.sync).
PRODUCT = ("zvmsnap", "hooks", "systemd", "docs", "pyproject.toml", "*.md", "LICENSE*", "*.example")


def product() -> list[Path]:
    """What `sync` copies, and what tests read of it."""
    return sorted(path for pattern in PRODUCT for path in settings.CHECKOUT_DIR.glob(pattern))


@cache
def of_product() -> str:
    """Changes when the product would."""
    return settings.digest(product())


@cache
def all_of_it() -> str:
    """Changes when a stage would, whichever test makes it."""
    return settings.digest([*product(), *_sources(settings.LAB_DIR)])


@cache
def seen_by(test: Path) -> str:
    """Changes when what a file of tests proves would: the product, the lab, what tests share."""
    shared = [path for path in _sources(settings.LAB_DIR) if not path.name.startswith("test_")]
    return settings.digest([*product(), *shared, test])


def _sources(directory: Path) -> list[Path]:
    # The image and the states have keys of their own, and are below all of this; no test uses
    # the benchmark.
    return sorted(path for path in directory.rglob("*") if path.suffix in (".py", ".S")
                  and not path.is_relative_to(directory / "bench"))
