"""Where points are to be stored: a dataset for the vault, and keys of config.toml. Pure.

Nothing is proposed where an administrator has decided already: the configuration names a vault, or
there are files in it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from zvmsnap.check.facts import Facts
from zvmsnap.config.sanoid_conf import Policy
from zvmsnap.config.settings import Config
from zvmsnap.setup import text

_DATASET = "zvmsnap-vault"
_PROPERTIES = ("compression=zstd", "recordsize=16K")
_HEADER = """\
# /etc/zvmsnap/config.toml, proposed by `zvmsnap init`. Every key is optional: config.toml.example
# explains them all.
"""
_KEEP = (
    "# The RAM of so many points is kept for each guest; their disks are kept as long as sanoid",
    "# keeps the snapshots.",
    "keep_memory = 24",
)


def dataset(facts: Facts, tops: Collection[str]) -> list[str]:
    """The words of `zfs create` for a vault, as zfs(8) takes them; [] if none is needed.

    `tops` are to be snapshotted, with all below them.
    """
    place = facts.config.vault_dir
    if facts.config.vault != Config().vault or _is_used(place) or facts.dataset_of(place):
        return []
    # A dataset below one that sanoid snapshots would be snapshotted, too.
    free = {
        name: pool.free_bytes
        for name, pool in (facts.pools or {}).items()
        if pool.health in ("ONLINE", "DEGRADED")
        and not (name in tops or _covers(facts, name))
        and f"{name}/{_DATASET}" not in (facts.datasets or {})
    }
    if not free:
        return []
    pool = max(sorted(free), key=lambda name: free[name])
    options = [word for each in (*_PROPERTIES, f"mountpoint={place}") for word in ("-o", each)]
    return [*options, f"{pool}/{_DATASET}"]


def _is_used(place: Path) -> bool:
    try:
        return any(place.iterdir())
    except OSError:
        return False


def _covers(facts: Facts, pool: str) -> bool:
    """Would a dataset at the top of that pool be snapshotted?"""
    policy = facts.sanoid.policies.get(pool) if facts.sanoid else None
    return policy is not None and (
        policy.is_recursive or any(each.parent == pool for each in _policies(facts))
    )


def _policies(facts: Facts) -> Sequence[Policy]:
    return list(facts.sanoid.policies.values()) if facts.sanoid else []


def config(facts: Facts, before: str, sources: Sequence[Path]) -> str:
    """config.toml, which now reads `before`, with how long RAM is kept, if nobody says that."""
    says_so = facts.config.default_keep.has_end or facts.keeps
    if says_so or any("keep_memory" in _read(path) for path in sources):
        return before
    if not before.strip():
        return before + _HEADER + "\n" + "".join(f"{line}\n" for line in _KEEP)
    return text.with_top_level(before, _KEEP)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
