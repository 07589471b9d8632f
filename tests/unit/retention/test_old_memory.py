"""RAM goes as retention/keep_memory decides; whatever dies, no manifest names what is not there."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.fetches import Fetches, UnfinishedFetch
from zvmsnap.journal.operation import CloneOperation, Operations, StartState
from zvmsnap.points import definition, vault, verify_result
from zvmsnap.points.manifest import Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.retention import old_memory, prune
from zvmsnap.zfs import zfs

Build = Callable[..., Manifest]
Put = Callable[..., RestorePoint]
KEEP = "zvmsnap:keep-memory"
OTHER = "c0ffee00-0000-4000-8000-000000000002"
RAM = b"RAM!"
GUEST = {UUID: ("web", ("tank/web",))}


def memory(name: str = "memory.img") -> Memory:
    return Memory(name, "raw", "none" if name == "memory.img" else "zstd", 4, 4, "00")


@pytest.fixture
def put(config: Config, manifest: Build, pools: FakeZfs) -> Put:
    """Publishes the point of an hour, with RAM, of tank/web; its snapshot exists."""

    def publish(hour: int, kinds: str = "hourly", ram: str = "memory.img", **changes: Any) -> Any:
        dataset = changes.pop("dataset", "tank/web")
        run = f"autosnap_2026-11-20_{hour:02}:00:00"
        refs = tuple(
            SnapshotRef(dataset, f"{run}_{kind}", 100 * hour + n, 100 * hour + n, pool_guid=70)
            for n, kind in enumerate(kinds.split())
        )
        known = {
            "run": run,
            "created": (datetime.now(UTC) - timedelta(hours=24 - hour)).isoformat(),
            "capture": f"{changes.get('uuid', UUID)}.{hour:08x}",
            "snapshots": refs,
            "memory": memory(ram) if ram else None,
            "level": ConsistencyLevel.MEMORY if ram else ConsistencyLevel.CRASH,
        }
        built = manifest(**{**known, **changes})
        directory = vault.incoming(config.vault_dir, built.domain, built.capture)
        for name in (ram, "domain.xml", "nvram.fd"):
            if name:
                (directory / name).write_bytes(RAM)
        pools.present |= {f"{ref.dataset}@{ref.name}": ref.guid for ref in built.snapshots}
        built = msgspec.structs.replace(built, seal=definition.seal_of(config, directory, built))
        return vault.publish(directory, built)

    return publish


def with_ram(config: Config) -> list[str]:
    """The hours of the points whose manifests name RAM, of which the files are all there."""
    points, damaged = vault.read(config)
    assert not damaged
    having = [point for point in points if point.manifest.memory]
    for point in having:
        assert all((point.directory / name).read_bytes() == RAM for name in point.memory.files)
    return [point.directory.name[-8:-6] for point in having]


def test_the_hook_removes_what_is_kept_no_longer(
    config: Config, put: Put, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = put(1), put(2, ram="memory.img.zst"), put(3)
    pools.properties = [("tank", KEEP, "1")]
    caplog.set_level("INFO")
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["03"]
    assert caplog.text.count("of RAM are removed (keep-memory)") == 2
    for before in (first, second):
        point = read_point(before.directory)
        assert sorted(os.listdir(point.directory)) == ["domain.xml", "manifest.json", "nvram.fd"]
        assert (point.manifest.level, point.manifest.reason) == (
            ConsistencyLevel.CRASH,
            "RAM removed by keep-memory",
        )
        kept = msgspec.structs.replace(
            point.manifest,
            **{name: getattr(before.manifest, name) for name in ("memory", "level", "reason")},
            absent_memory="",
        )
        assert kept == before.manifest  # all else is as it was
        assert definition.is_made_here(config, point.directory, point.manifest)
    assert read_point(third.directory).manifest == third.manifest
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["03"]


@pytest.mark.parametrize(
    ("default", "properties", "expected"),
    [
        pytest.param("all", [], ["01", "02", "03"], id="nothing is set"),
        pytest.param(2, [], ["02", "03"], id="configured"),
        pytest.param(1, [("tank/web", KEEP, "all")], ["01", "02", "03"], id="a property counts"),
        pytest.param("all", [("tank/web", f"{KEEP}:hourly", "2")], ["02", "03"], id="of a type"),
        pytest.param("all", [("tank/web", f"{KEEP}:daily", "2")], ["01", "02", "03"], id="another"),
        pytest.param(
            "all", [("tank", KEEP, "1"), ("tank/web", KEEP, "2")], ["02", "03"], id="near"
        ),
        pytest.param(1, [("tank/web", KEEP, "2 points")], ["01", "02", "03"], id="what is none"),
        pytest.param("all", [("tank/web", KEEP, "22h")], ["03"], id="age"),
    ],
)
def test_what_is_asked_for(
    config: Config,
    put: Put,
    pools: FakeZfs,
    default: str | int,
    properties: list[tuple[str, str, str]],
    expected: list[str],
) -> None:
    for hour in (1, 2, 3):
        put(hour)
    pools.properties = properties
    settings = msgspec.structs.replace(config, keep_memory=default)
    would = [point.directory.name[-8:-6] for point in prune.find(settings).old_memory]
    assert with_ram(config) == ["01", "02", "03"]
    old_memory.tidy(settings, GUEST)
    assert with_ram(config) == expected
    assert [*would, *expected] == ["01", "02", "03"]


def test_the_dataset_that_keeps_longest_counts(config: Config, put: Put, pools: FakeZfs) -> None:
    refs = {
        hour: (
            SnapshotRef("tank/web", f"s{hour}", hour, hour),
            SnapshotRef("tank/data", f"s{hour}", hour + 50, hour),
        )
        for hour in (1, 2, 3, 4)
    }
    for hour in (1, 2, 3, 4):
        put(hour, snapshots=refs[hour])
    pools.properties = [("tank/web", KEEP, "1"), ("tank/data", KEEP, "3")]
    old_memory.tidy(config, {UUID: ("web", ("tank/web", "tank/data"))})
    assert with_ram(config) == ["02", "03", "04"]


def test_the_type_that_keeps_longest_counts(config: Config, put: Put, pools: FakeZfs) -> None:
    for hour, kinds in ((1, "hourly daily"), (2, "hourly"), (3, "hourly"), (4, "hourly")):
        put(hour, kinds)
    pools.properties = [("tank", KEEP, "2"), ("tank", f"{KEEP}:daily", "5")]
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "03", "04"]


def test_a_snapshot_that_was_renamed_is_of_its_new_type(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    points = [put(hour) for hour in (1, 2, 3)]
    pools.properties = [("tank", KEEP, "1"), ("tank", f"{KEEP}:manual", "all")]
    pools.present["tank/web@keep-before-upgrade"] = pools.present.pop(
        "tank/web@autosnap_2026-11-20_01:00:00_hourly"
    )
    told = [old_memory.standing(config, point) for point in points]
    assert [each.until for each in told if each] == [
        "as long as the point",
        "until the next point, or prune",
        "until 1 more points have RAM (1)",
    ]
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "03"]
    assert prune.sweep(config).old_memory == []
    assert with_ram(config) == ["01", "03"]


def test_what_no_dataset_says_stays(config: Config, put: Put, pools: FakeZfs) -> None:
    """One is in a pool that is away, the other was renamed; neither is found by its name."""
    put(1, dataset="away/web")
    put(2, dataset="tank/old-name")
    for hour in (3, 4):
        put(hour)
    pools.properties = [("tank", KEEP, "1")]
    pools.present = {name: n for name, n in pools.present.items() if name.startswith("tank/web@")}
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "02", "04"]


def test_a_dataset_that_was_renamed_is_known_by_its_guid(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    name = "autosnap_2026-11-20_01:00:00_hourly"
    put(1, snapshots=(SnapshotRef("tank/old-name", name, 7, 1, dataset_guid=700, pool_guid=70),))
    put(2)
    pools.present[f"tank/web@{name}"] = pools.present.pop(f"tank/old-name@{name}")
    assert pools.lineages()["tank/web"].guid == 700
    pools.properties = [("tank", KEEP, "1")]
    assert prune.sweep(config).old_memory
    assert with_ram(config) == ["02"]


def test_a_guest_that_was_renamed_is_one_guest(config: Config, put: Put, pools: FakeZfs) -> None:
    for hour in (1, 2):
        put(hour, domain="www")
    for hour in (3, 4):
        put(hour)
    put(5, domain="other", uuid=OTHER)
    pools.properties = [("tank", KEEP, "1")]
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["05", "04", "01", "02"]  # by name
    prune.sweep(config)
    assert with_ram(config) == ["05", "04"]


def test_another_guest_of_the_same_name_is_another(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    put(1, uuid=OTHER)
    for hour in (2, 3):
        put(hour)
    pools.properties = [("tank", KEEP, "1")]
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "03"]


def test_a_point_without_snapshots_is_no_newer_one(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    """Else prune would remove the newest point, and the RAM of all others for it."""
    put(1)
    put(2)
    pools.properties = [("tank", KEEP, "1")]
    pools.present.pop("tank/web@autosnap_2026-11-20_02:00:00_hourly")
    findings = prune.sweep(config)
    assert [len(findings.orphans), findings.old_memory] == [1, []]
    assert with_ram(config) == ["01"]


# -- who works on it


def clone_of(point: RestorePoint) -> CloneOperation:
    return CloneOperation(
        domain="copy",
        uuid=OTHER,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        memory=True,
        start_state=StartState.RUNNING,
        capture=f"{OTHER}.00000001",
        network="none",
    )


@pytest.mark.parametrize("by_hook", [True, False])
def test_what_a_clone_or_restore_works_on_stays(
    config: Config, put: Put, pools: FakeZfs, by_hook: bool
) -> None:
    first, _, _ = put(1), put(2), put(3)
    pools.properties = [("tank", KEEP, "1")]

    def remove() -> None:
        if by_hook:
            old_memory.tidy(config, GUEST)
        else:
            prune.sweep(config)

    Operations(config.journal_dir).write(clone_of(first))
    remove()
    assert with_ram(config) == ["01", "03"]
    Operations(config.journal_dir).close(OTHER)
    remove()
    assert with_ram(config) == ["03"]


@pytest.mark.parametrize("name", [UUID, "vault"])
def test_the_hook_waits_for_nobody(
    config: Config, put: Put, pools: FakeZfs, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    for hour in (1, 2):
        put(hour)
    pools.properties = [("tank", KEEP, "1")]
    caplog.set_level("INFO")
    with lock(config.locks_dir, name, "restore it", 1):
        old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "02"]
    assert "stays for now" in caplog.text and "restore it" in caplog.text
    assert not any(record.levelname in ("ERROR", "WARNING") for record in caplog.records)
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["02"]
    assert not is_held(config.locks_dir, name)


def test_what_is_fetched_or_of_another_version_stays(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    for hour in (1, 2):
        put(hour)
    pools.properties = [("tank", KEEP, "1")]
    fetches = Fetches(config.journal_dir)
    fetches.write(UUID, UnfinishedFetch("nas:b", "web@x", ("tank/web",)))
    old_memory.tidy(config, GUEST)
    assert prune.sweep(config).old_memory == []
    assert with_ram(config) == ["01", "02"]
    fetches.close(UUID)
    (config.journal_dir / f"{UUID}.json").write_text('{"schema": 99}')
    old_memory.tidy(config, GUEST)
    assert with_ram(config) == ["01", "02"]


def test_zfs_that_does_not_answer_is_no_failure_of_the_hook(
    config: Config,
    put: Put,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for hour in (1, 2):
        put(hour)

    def fail(*_: object) -> dict[str, dict[str, str]]:
        raise ZfsFailed("suspended")

    monkeypatch.setattr(zfs, "properties_of", fail)
    old_memory.tidy(msgspec.structs.replace(config, keep_memory=1), GUEST)
    assert with_ram(config) == ["01", "02"]
    assert "older RAM stays for now: suspended" in caplog.text


def test_what_was_moved_by_a_restore_meanwhile_is_not_undone(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    first, _ = put(1), put(2)
    moved = msgspec.structs.replace(first.manifest.snapshots[0], current_dataset="tank/other")
    vault.rewrite(first, first.manifest.with_snapshots((moved,)))
    assert old_memory.remove(config, [first]) == [first]
    assert read_point(first.directory).manifest.snapshots == (moved,)
    assert old_memory.remove(config, [first]) == []  # it has none any more
    vault.remove(first)
    assert old_memory.remove(config, [first]) == []


# -- it costs little


def test_the_hook_reads_only_points_with_ram_and_only_if_any_may_go(
    config: Config, put: Put, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hour in range(1, 9):
        put(hour, ram="")
    put(9)
    read: list[Path] = []
    asked: list[Sequence[str]] = []
    entry_in, properties_of = vault.entry_in, pools.properties_of

    def reading(path: Path) -> Any:
        read.append(path)
        return entry_in(path)

    def asking(names: Sequence[str], datasets: Sequence[str]) -> Any:
        asked.append(datasets)
        return properties_of(names, datasets)

    monkeypatch.setattr(vault, "entry_in", reading)
    monkeypatch.setattr(zfs, "properties_of", asking)
    old_memory.tidy(config, GUEST)
    assert (read, asked) == ([], [])  # the newest stays anyway
    put(10)
    old_memory.tidy(config, GUEST)
    assert (read, asked) == ([], [["tank/web"]])
    pools.properties = [("tank", KEEP, "1")]
    old_memory.tidy(config, GUEST)
    assert [path.name[-8:-6] for path in read] == ["09", "10"]
    assert asked == [["tank/web"]] * 2


# -- everything dies


class Died(BaseException):
    """The process does."""


@pytest.mark.parametrize("dies_before", ["results", "manifest", "files", "second file"])
def test_whoever_dies_leaves_a_point_that_is_true(
    config: Config, put: Put, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    first, _ = put(1), put(2)
    pools.properties = [("tank", KEEP, "1")]
    calls = 0

    def dying(verb: Callable[..., None], at: int) -> Callable[..., None]:
        def call(*words: Any) -> None:
            nonlocal calls
            if verb.__name__ == "remove_files":
                calls += 1
            if calls == at or at == 0:
                raise Died
            verb(*words)

        return call

    at = {"results": 1, "files": 2}
    with monkeypatch.context() as patch:
        if dies_before == "manifest":
            patch.setattr(vault, "rewrite", dying(vault.rewrite, 0))
        elif dies_before == "second file":
            (first.directory / "memory.img.zst").write_bytes(RAM)
        else:
            patch.setattr(vault, "remove_files", dying(vault.remove_files, at[dies_before]))
        if dies_before == "second file":
            old_memory.tidy(config, GUEST)
        else:
            with pytest.raises(Died):
                old_memory._tidy(config, GUEST)
    assert with_ram(config) in (["01", "02"], ["02"])
    if dies_before in ("files", "second file"):
        assert len(vault.having_memory(config.vault_dir, "web")) == 2
    dry = prune.find(config)
    findings = prune.sweep(config)
    assert [len(findings.old_memory) + len(findings.stray_memory)] == [1]
    assert dry.stray_memory == findings.stray_memory
    assert with_ram(config) == ["02"]
    assert sorted(os.listdir(first.directory)) == ["domain.xml", "manifest.json", "nvram.fd"]
    assert prune.sweep(config).is_empty


def test_ram_that_is_being_sent_to_this_vault_is_not_left_over(
    config: Config, put: Put, pools: FakeZfs
) -> None:
    point = put(1, ram="")
    image = point.directory / "memory.img"
    image.write_bytes(RAM)
    arriving = point.directory.with_name(f".arriving-{point.manifest.capture}")
    arriving.mkdir()
    assert prune.find(config).stray_memory == []
    # It has arrived: the manifest is the last that comes, and was read before.
    arriving.rmdir()
    vault.rewrite(point, msgspec.structs.replace(point.manifest, memory=memory()))
    assert vault.stray_memory(point) == []
    vault.rewrite(point, point.manifest)
    assert prune.sweep(config).stray_memory == [image]
    assert not image.exists()


# -- what verify has said


@pytest.mark.parametrize(
    ("result", "stays"),
    [
        pytest.param(VerifyResult(checked="2026-11-20T04:00:00+00:00"), True, id="read, good"),
        pytest.param(
            VerifyResult(checked="2026-11-20T04:00:00+00:00", why="memory.img is damaged"),
            False,
            id="read, bad",
        ),
        pytest.param(
            VerifyResult(checked="2026-11-20T04:00:00+00:00", booted=True, alive="its CPU works"),
            False,
            id="started",
        ),
    ],
)
def test_what_was_said_of_the_ram_goes_with_it(
    config: Config, put: Put, pools: FakeZfs, result: VerifyResult, stays: bool
) -> None:
    point = put(1)
    verify_result.keep(point, result)
    vault.put(point.directory, verify_result.SCREEN, b"PNG")
    assert old_memory.remove(config, [point]) == [point]
    assert verify_result.read(point) == (result if stays else None)
    assert not (point.directory / verify_result.SCREEN).exists()
