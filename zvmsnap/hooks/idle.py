"""Has a hook of sanoid nothing to do? Said before anything is loaded that work needs.

sanoid calls pre and post for each dataset that it snapshots, most of which have no guest, and prune
for each snapshot that it destroys. What zvmsnap works with takes several times as long to load as
Python itself. So what can be seen without is looked at first, and only reads:

| hook  | it has nothing to do if                                                              |
|-------|--------------------------------------------------------------------------------------|
| prune | no run is unfinished; this is the vault that was used so far; it has no point that   |
|       | is called like a run of these snapshots, or these points have whole manifests, which |
|       | name neither these datasets nor their guids                                          |
| post  | no run is unfinished, nor was any too late; nobody is to be told of a failure; no    |
|       | round has expected anything of these datasets                                        |
| pre   | none of these datasets, nor of those below them, can have a guest's disk: each is    |
|       | excluded, or a file system that is not mounted, or has nothing but a few             |
|       | directories; or no path in any guest's definition leads there, nor has any QEMU it   |
|       | open                                                                                 |

Whatever is not surely so is for hooks/main, which says what is wrong with it as well: calls of
others than sanoid, names that ZFS does not know, a configuration that is not plain, what cannot be
read, or not soon.
"""

from __future__ import annotations

import os
import select

from zvmsnap.config import plain
from zvmsnap.zfs import outline

TYPE_CHECKING = False  # what is imported for types alone takes its time, too
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOOKS_AT_MOST_S = 5.0
_SIGKILL = 9  # the module `signal` takes as long to load as all of this
_FIRST_INHERITED = 3

# zfs(8), "naming".
_IN_NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-:. ")
_NAME_MAX = 255
# As points/manifest and journal/round write them.
_MANIFEST_BEGINS = b'{\n  "schema": 2,'
_MANIFEST_ENDS = b"\n}\n"
_BYTES_MAX = 4 << 20  # a manifest with 10 000 snapshots has 3 MB
_EXPECTED = b'"expected":'
_DST = "dst"  # sanoid puts it into names, see hooks/sanoid


def has_nothing_to_do(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Has it? False if that is not sure."""
    return _soon(lambda: _is_idle(arguments, environment))


def _soon(look: Callable[[], bool]) -> bool:
    """Look in a child process: whoever looks into a suspended pool hangs, and cannot end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        seen = False
        try:
            # What the caller has open (its locks, before all) is not to be kept by what hangs.
            os.closerange(_FIRST_INHERITED, writing)
            os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
            seen = look()
        finally:
            os._exit(not seen)
    os.close(writing)
    # It is never written to: it is closed when the child ends.
    has_ended = bool(select.select([reading], [], [], _LOOKS_AT_MOST_S)[0])
    os.close(reading)
    if not has_ended:
        os.kill(child, _SIGKILL)
        return False
    return os.waitpid(child, 0)[1] == 0


def _is_idle(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    datasets = _words(environment, "SANOID_TARGETS", "SANOID_TARGET")
    names = _words(environment, "SANOID_SNAPNAMES", "SANOID_SNAPNAME")
    names += _words(environment, "SANOID_SNAPNAME", "SANOID_SNAPNAME")
    bare = [name.rpartition("@")[2] for name in names]
    owners = {name.rpartition("@")[0] for name in names} - {""}
    is_plain = datasets and names and owners.issubset(datasets)
    if not is_plain or not all(map(_is_dataset, datasets)) or not all(map(_is_name, bare)):
        return False
    if len(arguments) != 1 or "ZREPL_HOOKTYPE" in environment:
        return False
    try:
        settings = plain.settings(environment)
        if settings is None:
            return False
        if arguments[0] == "prune":
            return _prunes_nothing(settings, datasets, bare)
        if arguments[0] == "post":
            return _ends_nothing(settings, datasets)
        return arguments[0] == "pre" and _captures_nothing(settings, datasets, bare)
    except OSError:
        return False


def _words(environment: Mapping[str, str], plural: str, singular: str) -> list[str]:
    text = environment.get(plural) or environment.get(singular) or ""
    return [word for word in text.split(",") if word.strip()]


def _is_dataset(name: str) -> bool:
    components = name.split("/")
    return (
        len(name) <= _NAME_MAX
        and name[0].isalpha()
        and _IN_NAMES.issuperset(name.replace("/", ""))
        and not any(each in ("", ".", "..") for each in components)
    )


def _is_name(name: str) -> bool:
    # One that begins with a dot is quoted in the vault.
    is_short = 0 < len(name) <= _NAME_MAX
    return is_short and _IN_NAMES.issuperset(name) and not name.startswith(".")


def _prunes_nothing(
    settings: Mapping[str, str], datasets: Sequence[str], names: Sequence[str]
) -> bool:
    if _has_entries(settings["journal"]):
        return False
    vault = settings["vault"]
    known = _content(f"{settings['journal']}/vault.id")
    if known is not None and known != (_content(f"{vault}/.zvmsnap-vault") or b""):
        return False
    runs = {run for name in names for run in _may_be_runs(name)}
    beginnings = tuple(runs)
    points = [
        f"{folder}/{directory}"
        for folder in _folders(vault)
        for directory in _listed(folder)
        if directory.startswith(beginnings)  # few do, of 10 000
        and (directory in runs or directory.rpartition(".")[0] in runs)
    ]
    return not points or _are_of_others(points, datasets)


def _are_of_others(points: Sequence[str], datasets: Sequence[str]) -> bool:
    """Is no point of one of these datasets, whatever they are called now?"""
    guids = outline.guids(datasets)
    if guids is None:
        return False
    own = [*map(_in_json, datasets), *(guid.encode() for guid in guids)]
    for point in points:
        manifest = f"{point}/manifest.json"
        if os.path.islink(point) or os.path.islink(manifest):
            return False
        content = _content(manifest) or b""
        is_whole = content.startswith(_MANIFEST_BEGINS) and content.endswith(_MANIFEST_ENDS)
        if not is_whole or any(each in content for each in own):
            return False
    return True


def _in_json(dataset: str) -> bytes:
    return f'"{dataset}"'.encode()  # of what these names may have, JSON escapes nothing


def _may_be_runs(name: str) -> set[str]:
    """The run of a snapshot of that name is one of these (common/snapshot_name.run_of)."""
    without_type = name.rpartition("_")[0]
    return {name, without_type, without_type.removesuffix(_DST)} - {""}


def _ends_nothing(settings: Mapping[str, str], datasets: Sequence[str]) -> bool:
    if _has_entries(settings["journal"]) or _listed(f"{settings['journal']}/late"):
        return False
    locks = settings["locks"]
    if _listed(f"{locks}/notices"):
        return False  # pre has failed, and nobody was told
    notes = [
        _content(f"{locks}/{each}/notes.json") or b""
        for each in _listed(locks)
        if each.startswith("round-")
    ]
    # What comes before names all of which sanoid takes recursive snapshots.
    expected = [each.partition(_EXPECTED)[2] or each for each in notes]
    return not any(_in_json(dataset) in each for each in expected for dataset in datasets)


def _captures_nothing(
    settings: Mapping[str, str], datasets: Sequence[str], names: Sequence[str]
) -> bool:
    if _had_guests(settings["vault"], datasets):
        return False
    kinds = outline.not_excluded(datasets, {_type_of(name) for name in names})
    if kinds is None:
        return False
    has_volumes = any(kind != outline.FILESYSTEM for kind in kinds.values())
    if not has_volumes and not outline.holds_files(kinds):
        return True
    from zvmsnap.virt import outline as guests

    used = guests.used(settings["uri"])
    return used is not None and not outline.holds_any(kinds, *used)


def _had_guests(vault: str, datasets: Sequence[str]) -> bool:
    """Had a guest a disk there, or below, at its last point? It will, and no time is lost here."""
    named = [each for dataset in datasets for each in (_in_json(dataset), f'"{dataset}/'.encode())]
    for folder in _folders(vault):
        last = max(_listed(folder), default="")
        manifest = _content(f"{folder}/{last}/manifest.json") or b""
        if any(each in manifest for each in named):
            return True
    return False


def _type_of(name: str) -> str:
    """As common/snapshot_name.type_or_manual."""
    before, _, behind = name.rpartition("_")
    return behind if before and behind in plain.TYPES else "manual"


def _has_entries(journal: str) -> bool:
    return any(name.endswith(".json") for name in _listed(journal))


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _content(path: str) -> bytes | None:
    try:
        # A pipe that somebody put there does not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        content = file.read(_BYTES_MAX + 1)
    if len(content) > _BYTES_MAX:
        raise OSError(f"{path} is too large")
    return content


def _folders(vault: str) -> list[str]:
    """The directories of guests in the vault."""
    paths = [f"{vault}/{guest}" for guest in _listed(vault) if not guest.startswith(".")]
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
