import subprocess
import sys
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import msgspec
import pytest

import zvmsnap
from zvmsnap.common.errors import LockTimeout, ZfsFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.retention import prune
from zvmsnap.retention.forget import forget
from zvmsnap.retention.leftovers import Leftovers
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Lineage, NamedSnapshots, Snapshot, SnapshotListing, SnapshotUsage

Build = Callable[..., Manifest]
T = "autosnap_2026-11-20_03:00:00"
UUID = "c0ffee00-0000-4000-8000-000000000001"
THREE = UUID[:-1] + "3"
FOUR = UUID[:-1] + "4"


class Pools:
    """The snapshots of the imported pools, datasets with guids, and a count of the questions."""

    def __init__(self) -> None:
        self.imported = {"tank"}
        self.pool_guids = {"tank": 70, "old": 71, "pond": 70}
        self.present: dict[str, int] = {}
        self.datasets = {"tank/web": Lineage(5, "")}
        self.asked: list[list[str]] = []
        self.listed = 0
        self.looked_into: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def _existing(self) -> list[Snapshot]:
        split = [(name.partition("@"), guid) for name, guid in self.present.items()]
        return [
            Snapshot(dataset, name, guid, 1)
            for (dataset, _, name), guid in split
            if dataset.partition("/")[0] in self.imported
        ]

    def snapshots(self, names: Iterable[str]) -> NamedSnapshots:
        self.asked.append(sorted(names))
        present = {each.full_name: each for each in self._existing()}
        known = {name: present[name] for name in self.asked[-1] if name in present}
        return NamedSnapshots(known, frozenset(self.imported))

    def all_snapshots(self, guids: Container[int] | None = None) -> SnapshotListing:
        self.listed += 1
        wanted = [each for each in self._existing() if guids is None or each.guid in guids]
        pools = {name: self.pool_guids[name] for name in self.imported}
        return SnapshotListing(wanted, pools, {n: each.guid for n, each in self.datasets.items()})

    def lineages(self) -> dict[str, Lineage]:
        return {n: e for n, e in self.datasets.items() if n.partition("/")[0] in self.imported}

    def snapshot_usage(self, datasets: list[str]) -> list[SnapshotUsage]:
        self.looked_into.append(datasets)
        self.meanwhile()
        return [SnapshotUsage(each, (), 0) for each in self._existing() if each.dataset in datasets]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Pools:
    pools = Pools()
    for verb in ("snapshots", "all_snapshots", "lineages", "snapshot_usage"):
        monkeypatch.setattr(zfs, verb, getattr(pools, verb))
    monkeypatch.setattr(zfs, "properties_of", lambda _names, _datasets: {})
    return pools


def refs(**guids: int) -> tuple[SnapshotRef, ...]:
    """Snapshots of tank/web, given as TYPE=GUID."""
    return tuple(
        SnapshotRef("tank/web", f"{T}_{kind}", guid, 1, dataset_guid=5, pool_guid=70)
        for kind, guid in guids.items()
    )


@pytest.fixture
def put(config: Config, manifest: Build) -> Callable[..., RestorePoint]:
    def put(**changes: object) -> RestorePoint:
        built = manifest(**changes)
        return vault.publish(vault.incoming(config.vault_dir, built.domain, built.capture), built)

    return put


def remaining(config: Config) -> list[str]:
    return [
        str(entry.directory.relative_to(config.vault_dir))
        for entry in vault.entries(config.vault_dir)
    ]


def destroyed(*kinds: str, dataset: str = "tank/web") -> HookCall:
    return HookCall(Role.PRUNE, (dataset,), tuple(f"{T}_{kind}" for kind in kinds))


FATES = [
    pytest.param({"hourly": 1}, {}, ["hourly"], True, id="its only snapshot"),
    pytest.param({"hourly": 1, "daily": 2}, {"daily": 2}, ["hourly"], False, id="one name left"),
    pytest.param({"hourly": 1, "daily": 2}, {}, ["daily"], True, id="the last of two names"),
    pytest.param({"hourly": 1}, {"hourly": 2}, ["hourly"], True, id="its name taken again"),
    pytest.param({"hourly": 1}, {"hourly": 1}, ["hourly"], False, id="not destroyed"),
    pytest.param({"hourly": 1}, {}, ["daily"], False, id="another name was destroyed"),
    pytest.param({"hourly": 1, "daily": 2}, {}, ["hourly", "daily"], True, id="two names at once"),
]


@pytest.mark.parametrize(("own", "present", "kinds", "removed"), FATES)
def test_forget(
    config: Config,
    pools: Pools,
    put: Callable[..., RestorePoint],
    own: dict[str, int],
    present: dict[str, int],
    kinds: list[str],
    removed: bool,
) -> None:
    put(snapshots=refs(**own))
    pools.present = {f"tank/web@{T}_{kind}": guid for kind, guid in present.items()}
    assert forget(destroyed(*kinds), config)
    assert remaining(config) == ([] if removed else [f"web/{T}"])
    assert pools.listed == 0


def test_forget_when_the_pool_vanished(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1))
    pools.imported = set()
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]


def test_forget_when_zfs_fails(
    config: Config, put: Callable[..., RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(snapshots=refs(hourly=1))

    def fail(names: Iterable[str]) -> NamedSnapshots:
        raise ZfsFailed("no module")

    monkeypatch.setattr(zfs, "snapshots", fail)
    with pytest.raises(ZfsFailed):
        forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]


def test_forget_a_name_with_dst(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=(SnapshotRef("tank/web", f"{T}dst_hourly", 1, 1),))
    assert forget(HookCall(Role.PRUNE, ("tank/web",), (f"{T}dst_hourly",)), config)
    assert remaining(config) == []


def test_forget_one_of_several_points_of_a_run(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1), capture=f"{UUID}.e8b7be43")
    put(snapshots=(SnapshotRef("tank/other", f"{T}_hourly", 2, 1),), capture=f"{UUID}.71beeff9")
    put(snapshots=refs(hourly=3), capture=f"{UUID}.06b9df6f", domain="db")
    put(snapshots=refs(hourly=4), capture=f"{UUID}.98dd4acc", run="another")
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == ["web/another", f"web/{T}.2"]
    assert [set(names) for names in pools.asked] == [{f"tank/web@{T}_hourly"}]


def test_forget_asks_for_all_snapshots_of_a_point(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    several = (*refs(hourly=1, daily=2), SnapshotRef("old/data", f"{T}_daily", 3, 1))
    put(snapshots=several)
    assert forget(destroyed("hourly"), config)
    assert pools.asked == [sorted(ref.full_name for ref in several)]
    assert remaining(config) == [f"web/{T}"]


def test_forget_an_unknown_snapshot_does_not_ask_zfs(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1))
    with lock(config.locks_dir, "vault", "test", 1):
        assert forget(destroyed("hourly", dataset="tank/none"), config)
    assert pools.asked == []


def test_forget_waits_for_the_vault_only_until_the_deadline(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1))
    hasty = msgspec.structs.replace(config, limits=Limits(lock_timeout_s=0.05))
    with lock(config.locks_dir, "vault", "sweep", 1), pytest.raises(LockTimeout, match="sweep"):
        forget(destroyed("hourly"), hasty)
    assert remaining(config) == [f"web/{T}"]


def test_forget_reports_damaged_points_of_that_run_and_goes_on(
    config: Config, pools: Pools, put: Callable[..., RestorePoint], caplog: pytest.LogCaptureFixture
) -> None:
    put(snapshots=refs(hourly=1))
    broken = config.vault_dir / "db" / T
    broken.mkdir(parents=True)
    elsewhere = config.vault_dir / "db" / "another"
    elsewhere.mkdir()
    assert not forget(destroyed("hourly"), config)
    assert remaining(config) == ["db/another", f"db/{T}"]
    assert str(broken) in caplog.text
    assert str(elsewhere) not in caplog.text


def test_find_and_sweep(
    config: Config, pools: Pools, put: Callable[..., RestorePoint], entry: Callable[..., Entry]
) -> None:
    alive = put(capture=f"{UUID}.103b5a53", run="alive", snapshots=refs(hourly=1))
    orphan = put(capture=f"{UUID}.3065833e", run="orphan", snapshots=refs(daily=2, weekly=3))
    retaken = put(capture=f"{UUID}.c768a180", run="retaken", snapshots=refs(monthly=4))
    unknown = put(
        capture=f"{UUID}.f26d6a3e", run="u", snapshots=(SnapshotRef("old/web", "x", 5, 1),)
    )
    partly = put(
        capture=f"{UUID}.6cedb737",
        run="partly",
        snapshots=(SnapshotRef("old/web", "y", 6, 1), *refs(weekly=3)),
    )
    pools.present = {
        f"tank/web@{T}_hourly": 1,
        f"tank/web@{T}_monthly": 44,
        "tank/web@by hand": 7,
        "tank/unmanaged@a": 8,
        "tank/journalled@a": 9,
    }
    half_published = vault.incoming(config.vault_dir, "web", "given-up")
    half_removed = config.vault_dir / "web" / ".removing-x"
    half_removed.mkdir()
    being_published = vault.incoming(config.vault_dir, "web", f"{UUID}.0000000f")
    damaged = config.vault_dir / "web" / "damaged"
    damaged.mkdir()
    disk = msgspec.structs.replace(entry().disks[0], dataset="tank/journalled")
    Journal(config.journal_dir).write(entry(capture=f"{UUID}.0000000f", disks=(disk,)))

    before = sorted(Path(config.vault).parent.rglob("*"))
    findings = prune.find(config)
    assert sorted(Path(config.vault).parent.rglob("*")) == before
    assert pools.listed == 2
    assert findings.orphans == [orphan, retaken]
    assert findings.unknown == [partly, unknown]
    assert sorted(findings.leftovers.paths) == sorted([half_published, half_removed])
    assert [entry.directory for entry in findings.damaged] == [damaged]
    assert findings.leftovers.overlays == []
    assert [snapshot.full_name for snapshot in findings.pointless] == [
        "tank/journalled@a",
        "tank/web@autosnap_2026-11-20_03:00:00_monthly",
        "tank/web@by hand",
    ]

    assert prune.sweep(config) == findings
    assert remaining(config) == ["web/alive", "web/damaged", "web/partly", "web/u"]
    assert being_published.is_dir()
    assert not half_published.exists()
    assert not half_removed.exists()
    assert (alive.directory.exists(), unknown.directory.exists()) == (True, True)

    again = prune.sweep(config)
    assert (again.orphans, again.leftovers) == ([], Leftovers())


@pytest.fixture
def capture(config: Config) -> Callable[[int, bool], StagingDir]:
    """A capture in staging, with or without an overlay."""

    def make(number: int, overlay: bool) -> StagingDir:
        made = StagingDir(config.staging_dir / f"{UUID[:-1]}{number}.{number:08x}")
        made.make()
        made.memory.write_bytes(b"RAM")
        if overlay:
            made.overlay("vda").write_bytes(b"writes")
        return made

    return make


def test_staging_of_interrupted_runs(
    config: Config,
    pools: Pools,
    entry: Callable[..., Entry],
    capture: Callable[[int, bool], StagingDir],
) -> None:
    abandoned, frozen = capture(1, False), capture(2, True)
    under_way, under_way_frozen = capture(3, False), capture(4, True)
    journal = Journal(config.journal_dir)
    journal.write(entry(uuid=THREE, capture=under_way.path.name))
    journal.write(entry(uuid=FOUR, capture=under_way_frozen.path.name))

    findings = prune.sweep(config)
    assert sorted(findings.leftovers.paths) == [abandoned.path, frozen.point]
    assert findings.leftovers.overlays == [frozen.overlay("vda")]
    assert sorted(config.staging_dir.iterdir()) == [
        frozen.path,
        under_way.path,
        under_way_frozen.path,
    ]
    assert list(frozen.path.iterdir()) == [frozen.overlay("vda")]
    assert under_way.memory.exists()
    assert under_way_frozen.overlay("vda").exists()
    assert prune.sweep(config).leftovers == Leftovers(overlays=[frozen.overlay("vda")])


def test_foreign_directories_in_staging_are_kept(
    config: Config, pools: Pools, capture: Callable[[int, bool], StagingDir]
) -> None:
    capture(1, False).remove()
    precious = [
        config.staging_dir / "vault" / "web" / T,
        config.staging_dir / "lost+findings",
        config.staging_dir / UUID,
        config.staging_dir / f"{UUID}.backup12",
        config.staging_dir / f"x{UUID}.00000001",
    ]
    for directory in precious:
        directory.mkdir(parents=True)
    (config.staging_dir / f"{UUID}.0000000a").symlink_to(config.staging_dir / "lost+findings")
    assert prune.sweep(config).leftovers == Leftovers()
    assert all(directory.is_dir() for directory in precious)


def test_leftovers_that_somebody_else_removes(
    config: Config,
    pools: Pools,
    put: Callable[..., RestorePoint],
    capture: Callable[[int, bool], StagingDir],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, other = capture(1, False), capture(2, False)
    find = prune.find

    def find_slowly(config: Config) -> prune.Findings:
        findings = find(config)
        closing.remove()
        return findings

    monkeypatch.setattr(prune, "find", find_slowly)
    prune.sweep(config)
    assert not other.path.exists()


def test_a_listing_that_lacks_something_costs_no_point(
    config: Config, pools: Pools, put: Callable[..., RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dataset that is renamed during a listing; or the pool was exported after it."""
    put(snapshots=refs(hourly=1))
    pools.present = {f"tank/web.before@{T}_hourly": 1}
    listings = iter([SnapshotListing([], {"tank": 70}, {})])
    complete = pools.all_snapshots
    monkeypatch.setattr(zfs, "all_snapshots", lambda guids=None: next(listings, complete(guids)))
    findings = prune.sweep(config)
    assert (findings.orphans, findings.unknown) == ([], [])
    assert remaining(config) == [f"web/{T}"]


def test_zfs_fails_during_the_sweep(
    config: Config, put: Callable[..., RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(snapshots=refs(hourly=1))

    def fail(guids: Container[int] | None = None) -> SnapshotListing:
        raise ZfsFailed("no module")

    monkeypatch.setattr(zfs, "all_snapshots", fail)
    with pytest.raises(ZfsFailed):
        prune.sweep(config)
    assert remaining(config) == [f"web/{T}"]


def test_nothing_set_up_yet(config: Config, pools: Pools) -> None:
    assert prune.sweep(config) == prune.Findings(Leftovers())


HOOK = """\
import sys
from zvmsnap.hooks import main as hooks
code = hooks.main(["prune"])
heavy = {"libvirt", "libzfs_core", "typer", "rich", "zstandard", "zvmsnap.virt.host"}
print(sorted(heavy & set(sys.modules)))
sys.exit(code)
"""


def test_the_hook_of_an_unknown_snapshot_is_light(tmp_path: Path, config: Config) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(f"vault = '{config.vault}'\nlocks = '{config.locks}'\n")
    (config.vault_dir / "web" / "another run").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", HOOK],
        env={
            "ZVMSNAP_CONFIG": str(settings),
            "PATH": str(tmp_path),
            "PYTHONPATH": str(Path(zvmsnap.__file__).parents[1]),
            "SANOID_TARGET": "tank/web",
            "SANOID_SNAPNAME": f"{T}_hourly",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert not config.locks_dir.exists()


def test_snapshots_under_another_name_keep_their_point(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1))
    pools.present = {"tank/renamed@keep-before-upgrade": 1}
    assert prune.sweep(config) == prune.Findings(Leftovers())
    assert remaining(config) == [f"web/{T}"]
    pools.present = {}
    assert [point.name for point in prune.sweep(config).orphans] == [f"web@{T}"]
    assert remaining(config) == []


def test_prune_of_a_pool_that_got_another_name(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1), run="alive")
    gone = put(snapshots=refs(hourly=2), run="gone", capture=f"{UUID}.71beeff9")
    pools.present = {f"pond/web@{T}_hourly": 1, f"pond/web@{T}_daily": 3}
    pools.imported = {"pond"}
    findings = prune.sweep(config)
    assert (findings.orphans, findings.unknown) == ([gone], [])
    assert [each.full_name for each in findings.pointless] == [f"pond/web@{T}_daily"]
    assert remaining(config) == ["web/alive"]


# -- the pruning hook goes by guid


def test_forget_keeps_the_point_of_a_renamed_snapshot(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=refs(hourly=1, monthly=2))
    pools.present = {"tank/web@keep-before-upgrade": 2}
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]
    assert (pools.listed, pools.looked_into) == (0, [["tank/web"]])
    pools.present = {}
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == []


WHERE = [
    pytest.param(
        {"tank/www": Lineage(5, "")}, "tank/www", [f"web/{T}"], id="its dataset was renamed"
    ),
    pytest.param(
        {"tank/www": Lineage(5, ""), "tank/web": Lineage(6, "")},
        "tank/www",
        [f"web/{T}"],
        id="renamed, and another has its name",
    ),
    pytest.param(
        {"tank/web.before": Lineage(5, ""), "tank/web": Lineage(6, "tank/web.before")},
        "tank/web.before",
        [f"web/{T}"],
        id="a restore has swapped, and not noted it yet",
    ),
    pytest.param(
        {"tank/web.before": Lineage(5, "tank/web"), "tank/web": Lineage(6, "")},
        "tank/web",
        [f"web/{T}"],
        id="and has promoted",
    ),
    pytest.param(
        {
            "tank/web": Lineage(5, "tank/b"),
            "tank/b": Lineage(6, "tank/c"),
            "tank/c": Lineage(7, ""),
        },
        "tank/c",
        [f"web/{T}"],
        id="clones of clones were promoted",
    ),
    pytest.param({"pond/web": Lineage(5, "")}, "pond/web", [f"web/{T}"], id="in a renamed pool"),
    pytest.param({}, "", [f"web/{T}"], id="its dataset does not exist: prune looks at all"),
    pytest.param(
        {"tank/web": Lineage(6, "")}, "", [f"web/{T}"], id="another has its name: prune looks"
    ),
    pytest.param({"tank/www": Lineage(5, "")}, "", [], id="its dataset was renamed, it is gone"),
    pytest.param(
        {"tank/web": Lineage(5, "tank/golden"), "tank/golden": Lineage(6, "")},
        "",
        [],
        id="gone from a clone of a golden image",
    ),
]


@pytest.mark.parametrize(("datasets", "holder", "left"), WHERE)
def test_forget_looks_where_the_snapshot_may_be(
    config: Config,
    pools: Pools,
    put: Callable[..., RestorePoint],
    datasets: dict[str, Lineage],
    holder: str,
    left: list[str],
) -> None:
    put(snapshots=refs(hourly=1, monthly=2))
    pools.imported = {"pond"} if "pond/web" in datasets else {"tank"}
    pools.datasets = datasets
    pools.present = {f"{holder}@{T}_monthly": 2} if holder else {}
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == left
    assert pools.listed == 0


@pytest.mark.parametrize("origin", ["tank/new", ""])
def test_forget_while_a_restore_moves_the_snapshots(
    config: Config, pools: Pools, put: Callable[..., RestorePoint], origin: str
) -> None:
    """Renamed, or promoted, after the datasets were listed and before their snapshots were."""
    put(snapshots=refs(hourly=1, monthly=2))
    moved = {"tank/web": Lineage(5, origin)} if origin else {"tank/web.before": Lineage(5, "")}

    def move() -> None:
        pools.datasets = {**moved, "tank/new": Lineage(6, "")}

    pools.meanwhile = move
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]


def test_forget_after_its_dataset_was_renamed(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    """sanoid names the dataset as it is called now."""
    put(snapshots=refs(hourly=1))
    pools.datasets = {"tank/www": Lineage(5, ""), "tank/other": Lineage(6, "")}
    assert forget(destroyed("hourly", dataset="tank/other"), config)
    assert remaining(config) == [f"web/{T}"]
    assert forget(destroyed("hourly", dataset="tank/www"), config)
    assert remaining(config) == []


def test_forget_a_point_that_does_not_say_its_dataset(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    older = SnapshotRef("tank/web", f"{T}_hourly", 1, 1)
    put(snapshots=(older,))
    pools.present = {"tank/web@keep": 1}
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]
    pools.present = {}
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == []


def test_forget_keeps_a_point_whose_other_dataset_may_have_been_renamed(
    config: Config, pools: Pools, put: Callable[..., RestorePoint]
) -> None:
    put(snapshots=(*refs(hourly=1), SnapshotRef("tank/data", f"{T}_hourly", 2, 2)))
    assert forget(destroyed("hourly"), config)
    assert remaining(config) == [f"web/{T}"]
