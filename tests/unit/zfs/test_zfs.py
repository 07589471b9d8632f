import dataclasses
import json
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.zfs import branches, marks, zfs
from zvmsnap.zfs.branches import Properties
from zvmsnap.zfs.types import Bookmark, Dataset, Lineage, NamedSnapshots, Snapshot, SnapshotUsage

FAKE_ZFS = f"""\
#!{sys.executable} -SE
import json, os, re, signal, sys
world = json.load(open(os.path.join(os.path.dirname(sys.argv[0]), "world.json")))
with open(os.path.join(os.path.dirname(sys.argv[0]), "calls"), "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if "exit" in world:
    print(world["says"], file=sys.stderr)
    if world["exit"] < 0:
        os.kill(os.getpid(), -world["exit"])
    sys.exit(world["exit"])
sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
if sys.argv[0].endswith("zpool"):
    print("".join(f"{{name}}\\t{{guid}}\\n" for name, guid in world["pools"].items()), end="")
    sys.exit(0)
words, options = iter(sys.argv[1:]), {{}}
verb = next(words)
if verb == "send":
    sys.stdout.buffer.write(bytes.fromhex(world["got"]))
if verb not in ("get", "list"):
    sys.exit(0)
names = []
for word in words:
    if word in ("-t", "-o", "-d", "-s"):
        options[word] = next(words)
    elif not word.startswith("-"):
        names.append(word)
status = 0
if verb == "get":
    asked = names.pop(0)
    sources = options.get("-s", "local,default,inherited,temporary,received,none").split(",")
    below = list(names) if "-r" in sys.argv else []
    names += [each for each in world["rows"] for top in below if each.startswith(f"{{top}}/")]
    for name in names or world["rows"]:
        row, set_by = world["rows"][name], world["sources"].get(name, {{}})
        if row["type"] not in options.get("-t", row["type"]).split(","):
            continue
        for each in set_by if asked == "all" else asked.split(","):
            cells = {{"name": name, "property": each, "value": row.get(each, "-")}}
            cells["source"] = set_by.get(each, "-")
            if (cells["source"].split()[0] if each in set_by else "none") in sources:
                print("\\t".join(cells[column] for column in options["-o"].split(",")))
    sys.exit(0)
for name in names or [n for n in world["rows"] if names or not options.get("-d") or "/" not in n]:
    row = world["rows"].get(name)
    if row and "-r" in sys.argv:
        for below, row in world["rows"].items():
            own = re.match(re.escape(name) + "([/@]|$)", below)
            if own and row["type"] in options["-t"].split(","):
                print("\\t".join(row[column] for column in options["-o"].split(",")))
        continue
    if options.get("-d") == "1":
        for below, row in world["rows"].items():
            if re.match(re.escape(name) + ("#" if "bookmark" in options["-t"] else "@"), below):
                print("\\t".join(row[column] for column in options["-o"].split(",")))
        continue
    if row is None:
        says = world["why_missing"]
        print(f"cannot open '{{name}}': {{says}}", file=sys.stderr)
        status = 1
    elif row["type"] in options["-t"].split(","):
        print("\\t".join(row[column] for column in options["-o"].split(",")))
sys.exit(status)
"""


class World:
    """The datasets and snapshots of the fake `zfs` on the PATH, and its calls."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rows: dict[str, dict[str, str]] = {}
        self._sources: dict[str, dict[str, str]] = {}
        for name in ("zfs", "zpool"):
            program = directory / name
            program.write_text(FAKE_ZFS)
            program.chmod(stat.S_IRWXU)
        self._pools: dict[str, int] = {}
        self._why_missing = "dataset does not exist"
        self._write({})

    def _write(self, world: dict[str, object]) -> None:
        (self._directory / "world.json").write_text(
            json.dumps(
                {
                    "rows": self._rows,
                    "sources": self._sources,
                    "pools": self._pools,
                    "why_missing": self._why_missing,
                    **world,
                }
            )
        )

    def says_of_missing(self, why: str) -> None:
        """It says that of names that it does not list."""
        self._why_missing = why
        self._write({})

    def pool(self, name: str, guid: int) -> None:
        self._pools[name] = guid
        self.filesystem(name)

    def filesystem(self, name: str, **properties: str) -> None:
        defaults = {"compression": "off", "zvmsnap:mode": "-", "zvmsnap:recursive": "-"}
        defaults |= {"origin": "-", "mounted": "-", "canmount": "-", "mountpoint": "-"}
        defaults |= {"encryption": "off", "keystatus": "-", "receive_resume_token": "-"}
        defaults |= {f"zvmsnap:mode:{each}": "-" for each in snapshot_name.TYPES}
        row = {"name": name, "type": "filesystem", "guid": "1", "createtxg": "1"}
        self._rows[name] = row | defaults | properties
        self._write({})

    def snapshot(
        self, name: str, guid: int, createtxg: int, clones: str = "", userrefs: str = "0"
    ) -> None:
        self._rows[name] = {
            "name": name,
            "type": "snapshot",
            "guid": str(guid),
            "createtxg": str(createtxg),
            "clones": clones,
            "userrefs": userrefs,
            "receive_resume_token": "-",
        }
        self._write({})

    def sets(self, name: str, properties: dict[str, str], source: str = "local") -> None:
        """Set properties of a dataset, which is made if need be."""
        if name not in self._rows:
            self.filesystem(name)
        self._rows[name] |= properties
        self._sources.setdefault(name, {}).update(dict.fromkeys(properties, source))
        self._write({})

    def estimates(self, output: bytes) -> None:
        """Set the output of `zfs send -nP`."""
        self._write({"got": output.hex()})

    def fails(self, code: int, says: str) -> None:
        self._write({"exit": code, "says": says})

    @property
    def calls(self) -> list[list[str]]:
        path = self._directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("PATH", str(tmp_path))
    return World(tmp_path)


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names for which libzfs_core was asked, to which it says `no such snapshot`."""
    asked: list[str] = []

    def none_of(names: list[str]) -> list[str]:
        asked.extend(names)
        return []

    monkeypatch.setattr(marks, "existing", none_of)
    return asked


def test_snapshots_of_which_some_are_missing(world: World, gone: list[str]) -> None:
    world.filesystem("tank")
    world.filesystem("tank/web")
    world.snapshot("tank/web@a", guid=2**64 - 1, createtxg=101)
    names = ["tank/web@b", "tank/web@a", "tank/web@a", "old/web@a", "tank/gone@a"]
    assert zfs.snapshots(names) == NamedSnapshots(
        {"tank/web@a": Snapshot("tank/web", "a", 2**64 - 1, 101)}, frozenset({"tank"})
    )
    assert gone == []
    assert len(world.calls) == 1


@pytest.mark.parametrize("why", ["I/O error", "der Datensatz existiert nicht"])
def test_missing_ones_of_which_zfs_says_anything_else_are_asked_for_again(
    world: World, gone: list[str], why: str
) -> None:
    world.filesystem("tank")
    world.filesystem("tank/web")
    world.snapshot("tank/web@a", guid=5, createtxg=101)
    world.says_of_missing(why)
    listing = zfs.snapshots(["tank/web@b", "tank/web@a", "old/web@a", "tank/gone@a"])
    assert list(listing.present) == ["tank/web@a"]
    assert gone == ["tank/gone@a", "tank/web@b"]


def test_no_snapshots_asked_for_costs_no_process(world: World) -> None:
    assert zfs.snapshots([]) == NamedSnapshots({}, frozenset())
    assert world.calls == []


def test_pool_that_is_not_listed_proves_nothing(world: World, gone: list[str]) -> None:
    assert zfs.snapshots(["tank/web@a"]).pools == frozenset()
    assert gone == []


def test_many_snapshots_cost_few_processes(world: World, gone: list[str]) -> None:
    world.filesystem("tank")
    names = [f"tank@{number}" for number in range(1200)]
    world.snapshot("tank@1199", guid=5, createtxg=6)
    listing = zfs.snapshots(names)
    assert list(listing.present) == ["tank@1199"]
    assert gone == []
    assert len(world.calls) == 3


def test_what_cannot_be_proven_gone_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(names: list[str]) -> list[str]:
        raise ZfsFailed(f"{names[0]}: cannot be asked for")

    monkeypatch.setattr(marks, "existing", unsure)
    world.filesystem("tank")
    world.says_of_missing("I/O error")
    with pytest.raises(ZfsFailed, match="tank@a: cannot be asked for"):
        zfs.snapshots(["tank@a"])
    monkeypatch.setattr(marks, "existing", lambda names: names)
    with pytest.raises(ZfsFailed, match="tank@a: exists, but `zfs list` does not show it"):
        zfs.snapshots(["tank@a"])


QUESTIONS: list[Callable[[], object]] = [
    lambda: zfs.snapshots(["tank@a"]),
    zfs.all_snapshots,
    zfs.datasets,
    zfs.lineages,
    zfs.pool_guids,
]
QUESTION_IDS = ["snapshots", "all_snapshots", "datasets", "lineages", "pool_guids"]


@pytest.mark.parametrize("ask", QUESTIONS, ids=QUESTION_IDS)
@pytest.mark.parametrize("code", [2, 127, -9], ids=["usage", "no library", "killed"])
def test_failure_is_never_silence(world: World, ask: Callable[[], object], code: int) -> None:
    world.fails(code, "first line\nThe ZFS modules are not loaded.")
    with pytest.raises(ZfsFailed, match=rf"\({code}\): The ZFS modules are not loaded\.$"):
        ask()


@pytest.mark.parametrize("ask", QUESTIONS[1:], ids=QUESTION_IDS[1:])
def test_listing_everything_must_succeed(world: World, ask: Callable[[], object]) -> None:
    world.fails(1, "")
    with pytest.raises(ZfsFailed, match="no reason given"):
        ask()


@pytest.mark.parametrize("ask", QUESTIONS, ids=QUESTION_IDS)
def test_no_zfs_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ZfsFailed, match="cannot be run"):
        ask()


def test_all_snapshots(world: World) -> None:
    world.pool("tank", 70)
    world.filesystem("tank/web", guid="5")
    world.pool("old", 2**64 - 1)
    world.snapshot("tank/web@a", guid=1, createtxg=2)
    world.snapshot("tank/My VMs@b c", guid=3, createtxg=4)
    mine, other = Snapshot("tank/web", "a", 1, 2), Snapshot("tank/My VMs", "b c", 3, 4)
    listing = zfs.all_snapshots()
    assert listing.snapshots == [mine, other]
    assert listing.pools == {"tank": 70, "old": 2**64 - 1}
    assert listing.datasets == {"tank": 1, "tank/web": 5, "old": 1}
    assert zfs.all_snapshots({3, 4}).snapshots == [other]
    assert len(world.calls) == 4


def test_a_pool_that_is_exported_during_the_listing_is_not_imported(world: World) -> None:
    world.pool("tank", 70)
    world.filesystem("old")
    listing = zfs.all_snapshots()
    assert listing.pools == {"tank": 70}
    assert "old" in listing.datasets


def test_lineages(world: World) -> None:
    world.filesystem("tank/golden", guid="4")
    world.filesystem("tank/web", guid="5", origin="tank/golden@base")
    assert zfs.lineages() == {
        "tank/golden": Lineage(4, ""),
        "tank/web": Lineage(5, "tank/golden"),
    }


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        pytest.param({}, Dataset("tank", "filesystem", False), id="nothing set"),
        pytest.param(
            {"compression": "zstd-3"}, Dataset("tank", "filesystem", True), id="compressed"
        ),
        pytest.param(
            {"zvmsnap:mode": "off", "zvmsnap:recursive": "on"},
            Dataset("tank", "filesystem", False, "off", "on"),
            id="our properties",
        ),
        pytest.param(
            {"zvmsnap:mode:hourly": "crash", "zvmsnap:mode:manual": "paused"},
            Dataset(*("tank", "filesystem", False), modes={"hourly": "crash", "manual": "paused"}),
            id="levels of types",
        ),
        pytest.param({"type": "volume"}, Dataset("tank", "volume", False), id="volume"),
        pytest.param(
            {"origin": "old/My VMs@a b", "mounted": "yes", "canmount": "noauto"},
            Dataset(
                *("tank", "filesystem", False, "", ""),
                origin="old/My VMs@a b",
                mounted=True,
                canmount="noauto",
            ),
            id="clone",
        ),
        pytest.param(
            {"encryption": "aes-256-gcm", "keystatus": "unavailable"},
            Dataset("tank", "filesystem", False, encrypted=True, locked=True),
            id="locked",
        ),
        pytest.param(
            {"encryption": "aes-256-gcm", "keystatus": "available"},
            Dataset("tank", "filesystem", False, encrypted=True),
            id="encrypted, with its key",
        ),
        *(
            pytest.param(
                {"mounted": "no", "mountpoint": mountpoint},
                Dataset("tank", "filesystem", False, mountpoint=mountpoint),
                id=f"mountpoint {mountpoint!r}",
            )
            for mountpoint in ("/a b", "none", "/a\tb\t", "/\x85\x0b\x1c\u2028\r", "/caf\udce9")
        ),
    ],
)
def test_datasets(world: World, properties: dict[str, str], expected: Dataset) -> None:
    world.filesystem("tank", **properties)
    assert zfs.datasets() == {"tank": dataclasses.replace(expected, guid=1)}


def test_datasets_at_and_below_some(world: World) -> None:
    for name in ("tank", "tank/web", "tank/web/data", "tank/webs", "tank/db", "tank/x"):
        world.filesystem(name, **{"zvmsnap:mode": name[5:] or "off"})
    world.snapshot("tank/web@a", guid=1, createtxg=2)
    asked = ("tank/db", "tank/none", "tank/web")
    below = {name: each.mode for name, each in zfs.datasets(asked).items()}
    assert below == {"tank/db": "db", "tank/web": "web", "tank/web/data": "web/data"}
    assert [call[-2:] for call in world.calls] == [
        ["tank/none", "tank/web"],
        ["tank/db", "tank/web"],
    ]
    assert zfs.datasets(("tank/none",)) == {}


def test_snapshots_knows_its_full_name() -> None:
    assert Snapshot("tank/web", "a b", 1, 2).full_name == "tank/web@a b"


FORGED = (
    "x\nzvmsnap:mode\ttank/web\tlocal\toff\ntank/db\tfilesystem\ton\t7\t-\tyes\n\r\x1b[2J\udcff"
)


def test_a_value_that_holds_lines_is_a_value(world: World) -> None:
    """Any user property of any dataset, and a mountpoint, may hold any byte but NUL."""
    names = ("zvmsnap:mode", "zvmsnap:recursive", "zvmsnap:mode:daily", "mountpoint")
    world.sets("tank", dict.fromkeys(names, FORGED))
    world.sets("tank/web", {"zvmsnap:mode": "crash"})
    assert zfs.datasets() == {
        "tank": Dataset(
            *("tank", "filesystem", False, FORGED, FORGED, 1),
            mountpoint=FORGED,
            modes={"daily": FORGED},
        ),
        "tank/web": Dataset("tank/web", "filesystem", False, "crash", guid=1),
    }


def test_snapshot_usage(world: World) -> None:
    world.snapshot("tank/My VMs@a b", guid=2**64 - 1, createtxg=4)
    world.snapshot("tank/My VMs@c", guid=5, createtxg=6, clones="tank/x y,tank/z", userrefs="2")
    world.snapshot("tank/v@-", guid=7, createtxg=8, clones="-", userrefs="-")
    assert zfs.snapshot_usage(["tank/My VMs", "tank/v"]) == [
        SnapshotUsage(Snapshot("tank/My VMs", "a b", 2**64 - 1, 4), (), 0),
        SnapshotUsage(Snapshot("tank/My VMs", "c", 5, 6), ("tank/x y", "tank/z"), 2),
        SnapshotUsage(Snapshot("tank/v", "-", 7, 8), (), 0),
    ]
    [call] = world.calls
    assert call[call.index("-s") + 1] == "createtxg"
    assert call[-2:] == ["tank/My VMs", "tank/v"]


@pytest.mark.parametrize("ask", [zfs.snapshot_usage, branches.properties])
def test_nothing_asked_for_is_not_everything(
    world: World, ask: Callable[[Sequence[str]], object]
) -> None:
    assert not ask([])
    assert world.calls == []


def test_properties_of_branches(world: World) -> None:
    world.sets("tank/My VMs", {"mountpoint": "/srv/My VMs", "com.x:note": FORGED})
    world.sets("tank/My VMs", {"com.x:late": "from a stream"}, "received")
    world.sets("tank/My VMs", {"com.x:above": "tank's"}, "inherited from tank")
    world.sets("tank/v", {"volsize": "1048576", "volblocksize": "8192", "keylocation": "prompt"})
    world.sets("tank/v", {"refreservation": "1048576"})
    world.filesystem("tank/plain")
    assert branches.properties(["tank/My VMs", "tank/v", "tank/plain"]) == {
        "tank/My VMs": Properties(
            {
                "mountpoint": "/srv/My VMs",
                "com.x:note": FORGED,
                "com.x:late": "from a stream",
            },
            received=frozenset({"com.x:late"}),
            inherited=frozenset({"com.x:above"}),
        ),
        "tank/v": Properties({"refreservation": "1048576"}),
        "tank/plain": Properties(),
    }
    assert branches.properties(["tank/plain"]) == {"tank/plain": Properties()}


def test_cloned_properties(world: World) -> None:
    world.sets("tank/v", {"volsize": "1048576", "volmode": "dev", "refreservation": "1048576"})
    world.sets("tank/v", {"autobackup:offsite": "true"})
    world.sets("tank/web", {"mountpoint": "/srv", "canmount": "noauto", "recordsize": "65536"})
    assert branches.cloned_properties(["tank/v", "tank/web"]) == {
        "tank/v": {"volmode": "dev"},
        "tank/web": {"recordsize": "65536"},
    }


def test_marked(world: World) -> None:
    world.filesystem("tank")
    assert zfs.marked("zvmsnap:clone") == {}
    world.sets("tank/My VMs", {"zvmsnap:clone": "web 2", "other:one": FORGED})
    world.sets("tank/b", {"zvmsnap:clone": FORGED})
    world.sets("tank/b/below", {"zvmsnap:clone": FORGED}, "inherited from tank/b")
    world.sets("tank/c", {"zvmsnap:clone": "sent"}, "received")
    here = {"tank/My VMs": "web 2", "tank/b": FORGED}
    assert zfs.marked("zvmsnap:clone") == here
    assert zfs.marked("zvmsnap:clone", inherited=True) == {
        **here,
        "tank/b/below": FORGED,
        "tank/c": "sent",
    }


VERBS: list[tuple[Callable[[], object], list[list[str]]]] = [
    (
        lambda: zfs.clone("a b@c d", "e f", {"mountpoint": "/x y", "u:v": "-o caf\udce9; $(x)"}),
        [["clone", "-o", "mountpoint=/x y", "-o", "u:v=-o caf\udce9; $(x)", "a b@c d", "e f"]],
    ),
    (lambda: zfs.clone("a@b", "c", {}), [["clone", "a@b", "c"]]),
    (lambda: zfs.promote("a b"), [["promote", "a b"]]),
    (lambda: zfs.rename("a b", "c d"), [["rename", "a b", "c d"]]),
    (lambda: zfs.set_property("a b", "u:v", "x=y z"), [["set", "u:v=x=y z", "a b"]]),
    (lambda: zfs.command("inherit", "u:v", "a b"), [["inherit", "u:v", "a b"]]),
    (lambda: zfs.mount("a b"), [["mount", "a b"]]),
    (lambda: zfs.unmount("a b"), [["unmount", "a b"]]),
    (lambda: zfs.rollback("a b@c d"), [["rollback", "-r", "a b@c d"]]),
    (lambda: zfs.destroy("a b@c d"), [["destroy", "a b@c d"]]),
]
VERB_IDS = [calls[0][0] for _, calls in VERBS]


@pytest.mark.parametrize(("do", "calls"), VERBS, ids=VERB_IDS)
def test_verbs(world: World, do: Callable[[], object], calls: list[list[str]]) -> None:
    do()
    assert world.calls == calls


@pytest.mark.parametrize("do", [do for do, _ in VERBS], ids=VERB_IDS)
def test_verbs_that_fail(world: World, do: Callable[[], object]) -> None:
    world.fails(1, "usage:\n  zfs ...\ncannot do it: dataset is busy")
    with pytest.raises(ZfsFailed) as caught:
        do()
    assert str(caught.value).endswith("failed (1): cannot do it: dataset is busy")
    assert len(str(caught.value).splitlines()) == 1


def test_destroyed_with_its_own_snapshots_and_nothing_below(world: World) -> None:
    world.snapshot("tank/My VMs@a b", guid=1, createtxg=1)
    world.snapshot("tank/My VMs/below@c", guid=2, createtxg=2)
    zfs.destroy("tank/My VMs", with_snapshots=True)
    assert [call for call in world.calls if call[0] == "destroy"] == [
        ["destroy", "tank/My VMs@a b"],
        ["destroy", "tank/My VMs"],
    ]


def test_subtree(world: World) -> None:
    for name, kind in (
        ("usb/off", "filesystem"),
        ("usb/off/a", "volume"),
        ("usb/offside", "volume"),
    ):
        world.filesystem(name, type=kind)
    world.snapshot("usb/off/a@late", guid=5, createtxg=9)
    world.snapshot("usb/off/a@early", guid=6, createtxg=8)
    world.snapshot("usb/offside@x", guid=7, createtxg=7)
    assert zfs.subtree("usb/off").interrupted == frozenset()
    world.filesystem("usb/off/a", type="volume", receive_resume_token="1-c0ffee")
    subtree = zfs.subtree("usb/off")
    assert subtree.interrupted == {"usb/off/a"}
    assert subtree.datasets == {"usb/off", "usb/off/a"}
    assert subtree.filesystems == {"usb/off"}
    assert [snapshot.name for snapshot in subtree.of("usb/off/a")] == ["early", "late"]
    assert subtree.of("usb/none") == []
    assert set(subtree.snapshots) == {"usb/off/a@late", "usb/off/a@early"}
    with pytest.raises(ZfsFailed, match="usb/none"):
        zfs.subtree("usb/none")


def test_bookmarks(world: World) -> None:
    world.filesystem("t/a")
    world.snapshot("t/a@s", guid=5, createtxg=9)
    world.snapshot("t/a#My: s@1", guid=6, createtxg=8)
    assert zfs.bookmarks(["t/a"]) == [Bookmark("t/a", "My: s@1", 6, 8)]
    assert world.calls[0] == [
        *["list", "-Hp", "-t", "bookmark", "-s", "createtxg", "-o", "name,guid,createtxg"],
        *["-d", "1", "t/a"],
    ]


def test_held_snapshots(world: World) -> None:
    world.snapshot("t/a@s", guid=5, createtxg=9)
    world.snapshot("t/a@held", guid=6, createtxg=8, userrefs="2")
    assert zfs.held_snapshots() == ["t/a@held"]


def test_properties(world: World) -> None:
    world.sets("usb", {"zvmsnap:vault": "/a\tb"})
    world.sets("usb/other", {"zvmsnap:vault": FORGED})
    assert zfs.properties("usb", ("zvmsnap:vault", "mounted")) == {
        "zvmsnap:vault": "/a\tb",
        "mounted": "",
    }


def test_no_value_can_be_taken_for_another_property(world: World) -> None:
    """What is asked for between the values is called otherwise each time."""
    world.filesystem("usb")
    for _ in range(2):
        zfs.properties("usb", ("a:b",))
    first, second = (call[call.index("-o") + 2].split(",")[0] for call in world.calls)
    assert first != second and first.startswith("zvmsnap:") and len(first) > 32


def test_stream_bytes(world: World) -> None:
    """As OpenZFS 2.3 says it."""
    world.estimates(b"full\tt/a@1\t1000\nsize\t1000\n")
    assert zfs.stream_bytes("t/a@1") == 1000
    world.estimates(b"incremental\t1\tt/a@2\t600\nincremental\t2\tt/a@3\t24\nsize\t624\n")
    assert zfs.stream_bytes("t/a@3", "t/a@1", raw=True) == 624
    zfs.stream_bytes("t/a@2", "t/a#1")
    assert world.calls == [
        ["send", "-nP", "t/a@1"],
        ["send", "-nPw", "-I", "t/a@1", "t/a@3"],
        ["send", "-nP", "-i", "t/a#1", "t/a@2"],
    ]


def test_at_a_destination(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec {tmp_path}/zfs list -Hp -t filesystem -o name none\n")
    ssh.chmod(0o755)
    with pytest.raises(ZfsFailed, match="me@nas: zfs list failed"):
        zfs.subtree("usb", RemoteHost("me@nas", tmp_path / "sockets"))


def test_snapshots_of_several_pools_are_taken_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZFSError(Exception):
        pass

    existing: set[str] = set()

    def lzc_snapshot(names: list[bytes]) -> None:
        if names[0].startswith(b"full/"):
            raise ZFSError("out of space")
        existing.update(name.decode() for name in names)

    core, exceptions = ModuleType("libzfs_core"), ModuleType("libzfs_core.exceptions")
    vars(core)["lzc_snapshot"], vars(exceptions)["ZFSError"] = lzc_snapshot, ZFSError
    monkeypatch.setitem(sys.modules, "libzfs_core", core)
    monkeypatch.setitem(sys.modules, "libzfs_core.exceptions", exceptions)
    monkeypatch.setattr(zfs, "destroy", existing.remove)
    zfs.take_snapshots(["tank/db", "fast/web"], "a")
    assert existing == {"tank/db@a", "fast/web@a"}
    with pytest.raises(ZfsFailed, match="full/x@b: cannot be taken: out of space"):
        zfs.take_snapshots(["tank/db", "fast/web", "full/x"], "b")
    assert existing == {"tank/db@a", "fast/web@a"}


def test_user_properties(world: World) -> None:
    world.sets("t/a", {"compression": "on", "other:note": FORGED, "zvmsnap:mod": "off\tor"})
    world.sets("t/a", {"zvmsnap:mode": FORGED}, "inherited from t")
    world.sets("t/a/b c", {"zvmsnap:recursive": ""}, "received")
    assert zfs.user_properties(["t/a"], "zvmsnap:") == [
        ("t/a", "zvmsnap:mod", "off\tor"),
        ("t", "zvmsnap:mode", FORGED),
    ]
    assert zfs.user_properties(["t/a", "t/a/b c"], "zvmsnap:") == [
        ("t/a", "zvmsnap:mod", "off\tor"),
        ("t", "zvmsnap:mode", FORGED),
        ("t/a/b c", "zvmsnap:recursive", ""),
    ]
    assert zfs.user_properties([], "zvmsnap:") == []
    world.filesystem("t/plain")
    before = len(world.calls)
    assert zfs.user_properties(["t/plain"], "zvmsnap:") == []
    assert len(world.calls) == before + 1  # without names, zfs get would fail
