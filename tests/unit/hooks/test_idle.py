"""A hook that has nothing to do says so at once, and only then."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zvmsnap
from zvmsnap.common import snapshot_name
from zvmsnap.common.process import Process
from zvmsnap.config import plain
from zvmsnap.config.settings import Config
from zvmsnap.hooks import idle
from zvmsnap.journal import late
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.round import Expected, Round
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import outline as guests
from zvmsnap.zfs import outline

ROOT = Path(zvmsnap.__file__).parents[1]
GUID, OTHER = 12297829382473034410, "17216961135462248174"
T = "autosnap_2026-11-20_03:00:00"

Hook = Callable[..., bool]


@pytest.fixture
def environment(tmp_path: Path, config: Config) -> Mapping[str, str]:
    """As sanoid calls a hook for one dataset, with the directories of the test."""
    path = tmp_path / "config.toml"
    path.write_text(
        f"staging = '{config.staging}'\nvault = '{config.vault}'\n"
        f"journal = '{config.journal}'\nlocks = '{config.locks}'\n"
    )
    return {
        "ZVMSNAP_CONFIG": str(path),
        "SANOID_TARGET": "tank/web",
        "SANOID_SNAPNAME": f"{T}_hourly",
    }


@pytest.fixture
def is_idle(environment: Mapping[str, str]) -> Hook:
    """Has the hook of that role nothing to do, called with these changes of the environment?"""

    def ask(role: str, **changes: str) -> bool:
        return idle.has_nothing_to_do([role], {**environment, **changes})

    return ask


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What ZFS says of the datasets of pre; nothing of it is mounted."""
    kinds = {"tank/web": "filesystem"}
    monkeypatch.setattr(outline, "not_excluded", lambda _datasets, _types: kinds)
    monkeypatch.setattr(outline, "holds_files", lambda _filesystems: False)
    return kinds


ROLES = pytest.mark.parametrize("role", ["pre", "post", "prune"])


@ROLES
def test_nothing_is_there(is_idle: Hook, config: Config, role: str) -> None:
    assert is_idle(role)
    assert not any(each.exists() for each in (config.journal_dir, config.locks_dir))


@ROLES
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"ZREPL_HOOKTYPE": "pre_snapshot"}, id="zrepl"),
        pytest.param({"SANOID_TARGET": ""}, id="by hand"),
        pytest.param({"SANOID_SNAPNAME": ""}, id="no name"),
        pytest.param({"SANOID_TARGET": "../web"}, id="no dataset"),
        pytest.param({"SANOID_TARGET": "tank//web"}, id="nothing between slashes"),
        pytest.param({"SANOID_TARGET": "tank/w\u00e9b"}, id="another letter"),
        pytest.param({"SANOID_TARGET": "t" * 256}, id="too long"),
        pytest.param({"SANOID_SNAPNAME": "a/b"}, id="no name of a snapshot"),
        pytest.param({"SANOID_SNAPNAME": ".a"}, id="quoted in the vault"),
        pytest.param({"SANOID_SNAPNAME": "tank/db@a"}, id="of another dataset"),
        pytest.param({"ZVMSNAP_CONFIG": "/nowhere/config.toml"}, id="no configuration"),
        pytest.param({"ZVMSNAP_CONFIG": "/"}, id="unreadable configuration"),
    ],
)
def test_what_is_not_plain_is_left_to_others(
    is_idle: Hook, role: str, changes: dict[str, str]
) -> None:
    assert not is_idle(role, **changes)


@pytest.mark.parametrize(
    "arguments", [[], ["snapshot"], ["pre", "tank"], ["PRE"]], ids="-".join
)  # fmt: skip
def test_other_arguments(environment: Mapping[str, str], arguments: list[str]) -> None:
    assert not idle.has_nothing_to_do(arguments, environment)


@ROLES
def test_wrong_configuration(is_idle: Hook, environment: Mapping[str, str], role: str) -> None:
    with open(environment["ZVMSNAP_CONFIG"], "a") as file:
        file.write("vualt = '/v'\n")
    assert not is_idle(role)


@pytest.mark.parametrize(("role", "idle"), [("pre", True), ("post", False), ("prune", False)])
def test_a_run_is_unfinished(
    is_idle: Hook, config: Config, entry: Callable[..., Entry], role: str, idle: bool
) -> None:
    # Of any guest: which datasets it concerns is in the entry.
    Journal(config.journal_dir).write(entry(owner=Process.of(os.getpid())))
    assert is_idle(role) is idle


@pytest.mark.parametrize("role", ["post", "prune"])
def test_an_entry_that_only_another_version_reads(is_idle: Hook, config: Config, role: str) -> None:
    config.journal_dir.mkdir(parents=True)
    (config.journal_dir / "x.json").write_text("?")
    assert not is_idle(role)


def test_post_of_a_run_that_was_too_late(
    is_idle: Hook, config: Config, entry: Callable[..., Entry]
) -> None:
    found = entry()
    late.journal_of(config.journal_dir, found.capture).write(found)
    assert not is_idle("post")


@pytest.mark.parametrize(
    ("target", "idle"),
    [("tank/web", False), ("tank/web/a b", False), ("tank", True), ("tank/we", True)],
)
def test_post_of_what_pre_has_expected_something_of(
    is_idle: Hook, config: Config, target: str, idle: bool
) -> None:
    own = Round(config.locks_dir, Process.of(os.getpid()))
    own.expect({"tank/web": Expected(False, "tank/web/a b")})
    Round(config.locks_dir, Process.of(1)).expect({"x": Expected(False, "x/y")})
    own.note(recursive=("tank", "tank/we", "tank/web"))
    assert is_idle("post", SANOID_TARGET=target) is idle
    assert is_idle("post", SANOID_TARGETS=f"tank/db,{target}") is idle


@pytest.mark.parametrize(
    ("directory", "idle"),
    [
        (T, False),
        (f"{T}.2", False),
        (f"{T}_hourly", False),
        (f"{T}.hourly", False),
        ("autosnap_2026-11-20_04:00:00", True),
        (f".incoming-{T}", True),
    ],
)
def test_prune_with_points(is_idle: Hook, config: Config, directory: str, idle: bool) -> None:
    (config.vault_dir / "my guest" / directory).mkdir(parents=True)
    assert is_idle("prune") is idle
    assert is_idle("prune", SANOID_SNAPNAME=f"{T}dst_hourly") is (idle or "_h" in directory)
    assert is_idle("prune", SANOID_SNAPNAME="by hand")


@pytest.fixture
def point(config: Config, manifest: Callable[..., Manifest]) -> Callable[..., RestorePoint]:
    """Publishes a point of the run with snapshots of these datasets, and their guids."""

    def publish(*datasets: tuple[str, int], domain: str = "web", moved: str = "") -> RestorePoint:
        refs = tuple(
            SnapshotRef(dataset, f"{T}_hourly", 1, 2, moved, dataset_guid=guid)
            for dataset, guid in datasets
        )
        built = manifest(domain=domain, snapshots=refs)
        return vault.publish(vault.incoming(config.vault_dir, domain, built.capture), built)

    return publish


@pytest.mark.parametrize(
    ("target", "guid", "idle"),
    [
        pytest.param("tank/web", OTHER, False, id="by name"),
        pytest.param("tank/web/my data", OTHER, False, id="by name of the second"),
        pytest.param("cheap/web", OTHER, False, id="by name of now"),
        pytest.param("tank/other", str(GUID), False, id="renamed since"),
        pytest.param("tank/other", OTHER, True, id="of another one"),
        pytest.param("tank", OTHER, True, id="of the one above"),
        pytest.param("tank/none", None, False, id="not known"),
    ],
)
def test_prune_of_a_run_that_has_points(
    is_idle: Hook,
    point: Callable[..., RestorePoint],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    guid: str | None,
    idle: bool,
) -> None:
    point(("tank/db", 12345678901234567), domain="db")
    point(("tank/web", 81), ("tank/web/my data", GUID), moved="cheap/web")
    monkeypatch.setattr(outline, "guids", lambda _datasets: {guid} if guid else None)
    assert is_idle("prune", SANOID_TARGET=target) is idle
    assert is_idle("prune", SANOID_TARGET=target, SANOID_SNAPNAME="autosnap_x_hourly")


def cut(directory: Path) -> None:
    (directory / "manifest.json").write_bytes((directory / "manifest.json").read_bytes()[:-20])


def other_schema(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))


def linked(directory: Path) -> None:
    (directory / "manifest.json").rename(directory / "other.json")
    (directory / "manifest.json").symlink_to("other.json")


def link(directory: Path) -> None:
    directory.rename(directory.with_name(".other"))
    directory.symlink_to(".other")


@pytest.mark.parametrize(
    "spoil",
    [cut, other_schema, linked, link, lambda directory: (directory / "manifest.json").unlink()],
)
def test_prune_of_a_run_with_a_point_that_is_to_be_reported(
    is_idle: Hook,
    point: Callable[..., RestorePoint],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(outline, "guids", lambda _datasets: {OTHER})
    directory = point(("tank/db", 1), domain="db").directory
    assert is_idle("prune", SANOID_TARGET="tank/other")
    spoil(directory)
    assert not is_idle("prune", SANOID_TARGET="tank/other")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("put", [pipe, endless])
@pytest.mark.parametrize("role", ["pre", "post", "prune"])
def test_what_somebody_may_put_there(
    is_idle: Hook,
    point: Callable[..., RestorePoint],
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    put: Callable[[Path], None],
    role: str,
) -> None:
    monkeypatch.setattr(outline, "guids", lambda _datasets: {OTHER})
    manifest = point(("tank/db", 1), domain="db").directory / "manifest.json"
    notes = config.locks_dir / "round-1-2" / "notes.json"
    notes.parent.mkdir(parents=True)
    for path in (manifest, notes):
        path.unlink(missing_ok=True)
        put(path)
    begun_s = time.monotonic()
    # A pipe has nothing in it: it names no dataset, and is no whole manifest.
    assert is_idle(role) is (put is pipe and role != "prune")
    assert time.monotonic() - begun_s < 4


def test_prune_beside_what_is_no_directory_of_the_vault(is_idle: Hook, config: Config) -> None:
    (config.vault_dir / ".removing" / T).mkdir(parents=True)
    (config.vault_dir / "stray").write_text("")
    (config.vault_dir / "link").symlink_to(config.vault_dir / ".removing")
    assert is_idle("prune")


def test_prune_of_a_vault_that_cannot_be_read(is_idle: Hook, config: Config) -> None:
    config.vault_dir.parent.mkdir(parents=True, exist_ok=True)
    config.vault_dir.write_text("")
    assert not is_idle("prune")


def test_prune_with_another_vault_than_before(is_idle: Hook, config: Config) -> None:
    vault.claim(config)
    assert is_idle("prune")
    (config.vault_dir / vault.MARK).write_text("another")
    assert not is_idle("prune")
    (config.vault_dir / vault.MARK).unlink()
    assert not is_idle("prune")


SANOID_NAMES = (
    st.tuples(
        st.sampled_from(["autosnap_x", "a", "", "dst", "a.2", "a_daily", "a b"]),
        st.sampled_from(["", "dst", "dstdst"]),
        st.sampled_from(["", *(f"_{each}" for each in plain.TYPES), "_x", "_"]),
    )
    .map("".join)
    .filter(bool)
)


@given(SANOID_NAMES, st.sampled_from(["", ".2", ".17"]))
def test_no_point_of_a_run_is_overlooked(name: str, number: str) -> None:
    run = snapshot_name.run_of(name)
    directory = f"{vault.folder_of(run)}{number}"
    assert vault.is_of_run(directory, run)
    runs = idle._may_be_runs(name)
    assert directory in runs or directory.rpartition(".")[0] in runs
    assert idle._type_of(name) == snapshot_name.type_or_manual(name)
    assert plain.TYPES == snapshot_name.TYPES


def test_pre_of_excluded_datasets(is_idle: Hook, listed: dict[str, str]) -> None:
    listed.clear()
    assert is_idle("pre")


def test_pre_where_a_guest_may_have_a_disk(
    is_idle: Hook, listed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "used", lambda _uri: None)
    listed["tank/web/data"] = "volume"
    assert not is_idle("pre")
    listed["tank/web/data"] = "filesystem"
    assert is_idle("pre")
    monkeypatch.setattr(outline, "holds_files", lambda filesystems: "tank/web/data" in filesystems)
    assert not is_idle("pre")


@pytest.mark.parametrize("kind", ["filesystem", "volume"])
@pytest.mark.parametrize(
    ("used", "idle"),
    [
        ((set(), set()), True),
        (({"/a"}, {1}), True),
        (({"/a", "/disk"}, {1}), False),
        (({"/a"}, {1, 2}), False),
        (None, False),
    ],
)
def test_pre_of_what_a_guest_may_use(
    is_idle: Hook,
    listed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    used: tuple[set[str], set[int]] | None,
    idle: bool,
) -> None:
    listed["tank/web"] = kind

    def holds_any(datasets: Iterable[str], paths: set[str], devices: set[int]) -> bool:
        return list(datasets) == ["tank/web"] and ("/disk" in paths or 2 in devices)

    monkeypatch.setattr(outline, "holds_files", lambda _filesystems: kind == "filesystem")
    monkeypatch.setattr(outline, "holds_any", holds_any)
    monkeypatch.setattr(guests, "used", {"qemu:///system": used}.__getitem__)
    assert is_idle("pre") is idle


@pytest.mark.parametrize(
    ("target", "asks"),
    [("tank/web", False), ("tank", False), ("tank/web/data", True), ("tank/db", True)],
)
def test_pre_asks_nobody_where_a_guest_had_a_disk(
    is_idle: Hook,
    point: Callable[..., RestorePoint],
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    asks: bool,
) -> None:
    point(("tank/web", 1))
    (config.vault_dir / "stray").write_text("")
    (config.vault_dir / "web" / "autosnap_2026-11-19_00:00:00").mkdir()
    monkeypatch.setattr(idle, "_soon", lambda look: look())
    asked: list[object] = []

    def note(*question: object) -> dict[str, str]:
        asked.append(question)
        return {}

    monkeypatch.setattr(outline, "not_excluded", note)
    assert is_idle("pre", SANOID_TARGET=target) is asks
    assert bool(asked) is asks


def test_pre_without_libvirt(is_idle: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_uri: str) -> None:
        raise libvirt.libvirtError

    monkeypatch.setattr(outline, "holds_files", lambda _filesystems: True)
    monkeypatch.setattr(guests, "used", fail)
    assert not is_idle("pre")


def test_pre_of_datasets_of_which_zfs_says_nothing(
    is_idle: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "not_excluded", lambda _datasets, _types: None)
    assert not is_idle("pre")


def test_pre_asks_of_all_datasets_and_types(is_idle: Hook, tmp_path: Path) -> None:
    asked = []

    def note(datasets: list[str], types: set[str]) -> dict[str, str]:
        asked.append((datasets, types))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "not_excluded", note)
        patch.setattr(idle, "_soon", lambda look: look())
        names = f"{T}_hourly,{T}_daily,{T}"
        assert is_idle("pre", SANOID_TARGETS="tank/web,tank/db", SANOID_SNAPNAMES=names)
    assert asked == [(["tank/web", "tank/db"], {"hourly", "daily", "manual"})]


def hang() -> bool:
    time.sleep(60)
    return True


def fail() -> bool:
    raise RuntimeError


@pytest.mark.parametrize("look", [hang, fail, lambda: False])
def test_what_is_not_soon_known(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[], bool], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(idle, "_LOOKS_AT_MOST_S", 0.2 if look is hang else 30)
    begun_s = time.monotonic()
    assert not idle._soon(look)
    assert time.monotonic() - begun_s < 20
    assert capfd.readouterr() == ("", "")


def test_what_the_caller_has_open_is_not_kept() -> None:
    reading, writing = os.pipe()
    assert idle._soon(lambda: not os.path.exists(f"/proc/self/fd/{writing}"))
    os.close(reading)
    os.close(writing)


# What each hook loads beside Python itself, if it has nothing to do. One module of the standard
# library may load a dozen, and take as long as Python needs to start.
LOADS = {
    "select",
    "zvmsnap",
    "zvmsnap.config",
    "zvmsnap.config.plain",
    "zvmsnap.hooks",
    "zvmsnap.hooks.idle",
    "zvmsnap.hooks.start",
    "zvmsnap.zfs",
    "zvmsnap.zfs.outline",
}
WATCHED = """
import os, sys
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
from zvmsnap.hooks import idle
idle._soon = lambda look: look()  # not in a child, whose modules nobody sees
from zvmsnap.hooks import start
code = start.run([sys.argv[2]])
print(sorted(set(sys.modules) - before - {"__future__"}))
sys.exit(code)
"""


@ROLES
def test_what_it_loads(
    environment: Mapping[str, str], config: Config, tmp_path: Path, role: str
) -> None:
    (config.vault_dir / "web" / "another run").mkdir(parents=True)
    program = tmp_path / "zfs"
    program.write_text("#!/bin/sh\necho 'tank/web\tfilesystem\t-\t-'\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(ROOT), role],
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sorted(LOADS)}\n", "")


ROUND = """\
#!/bin/sh
echo "$*" >> {asked}
for name; do :; done
case $name in */volume-*) kind=volume;; *) kind=filesystem;; esac
printf '%s\\t%s\\t-\\t-\\n' "$name" $kind
"""


def test_round_over_100_datasets_of_which_3_hold_guests(
    environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One zfs process for each pre, none for each post, and libvirt only where a guest may be."""
    monkeypatch.undo()
    program = tmp_path / "bin" / "zfs"
    program.parent.mkdir()
    program.write_text(ROUND.format(asked=tmp_path / "asked"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    volumes = [f"tank/volume-{number}" for number in range(10)]
    files = [f"tank/files-{number}" for number in range(30)]
    device = tmp_path.stat().st_dev
    table = tmp_path / "table"
    lines = []
    for number, name in enumerate(files):
        place = tmp_path / name
        place.mkdir(parents=True)
        (place / "file").write_text("")
        # Each file system has a device of its own; here all have the same but the first.
        own = device if name == "tank/files-0" else device + 1 + number
        lines.append(f"{number} 1 {os.major(own)}:{os.minor(own)} / {place} rw - zfs {name} rw\n")
    table.write_text("".join(lines))
    asked: list[str] = []

    def used(uri: str) -> tuple[set[str], set[int]]:
        asked.append(uri)
        return {f"{tmp_path}/tank/files-0/web.raw", "/dev/null"}, {1000, 1001}

    monkeypatch.setattr(guests, "used", used)
    monkeypatch.setattr(outline, "_volume", lambda number: f"tank/volume-{number - 1000}")
    monkeypatch.setattr(outline.holds_files, "__defaults__", (str(table),))
    monkeypatch.setattr(outline.holds_any, "__defaults__", (str(table),))

    datasets = [*volumes, *files, *(f"tank/unmounted-{number}" for number in range(60))]
    busy = {
        role: [
            name
            for name in datasets
            if not idle._is_idle([role], {**environment, "SANOID_TARGET": name})
        ]
        for role in ("pre", "post")
    }
    assert busy == {"pre": ["tank/volume-0", "tank/volume-1", "tank/files-0"], "post": []}
    assert len((tmp_path / "asked").read_text().splitlines()) == len(datasets) == 100
    assert len(asked) == len(volumes) + len(files)


def test_prune_reads_none_of_10_000_points(
    is_idle: Hook, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for guest in range(100):
        folder = config.vault_dir / f"web{guest}"
        folder.mkdir(parents=True)
        for hour in range(100):
            os.mkdir(f"{folder}/autosnap_2026-01-01_{hour}")
    read: list[str] = []
    content = idle._content

    def reading(path: str) -> bytes | None:
        read.append(path)
        return content(path)

    monkeypatch.setattr(idle, "_soon", lambda look: look())
    monkeypatch.setattr(idle, "_content", reading)
    assert is_idle("prune")
    assert read == [f"{config.journal_dir}/vault.id"]
    assert not is_idle("prune", SANOID_SNAPNAME="autosnap_2026-01-01_99_hourly")
