import dataclasses
import json
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from zvmsnap import mounttable, zfs
from zvmsnap.errors import ZfsFailed
from zvmsnap.mounttable import Mount
from zvmsnap.zfs import Answer, Dataset, Snapshot, Use

MOUNTINFO = b"""\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /tank rw,relatime shared:2 - zfs tank rw,xattr,noacl
24 23 0:22 / /tank/web rw shared:3 master:4 - zfs tank/web rw
25 24 0:23 / /tank/web/data rw - zfs tank/web/data rw
26 23 0:24 / /tank/My\\040VMs rw - zfs tank/My\\040VMs rw
27 22 0:22 /images /srv/images rw - zfs tank/web rw
28 22 0:25 / /mnt rw - ext4 /dev/vdb rw
29 28 0:26 / /mnt rw - zfs tank/over rw
30 22 0:27 / /hidden/deep rw - zfs tank/deep rw
31 22 0:28 / /hidden rw - zfs tank/hidden rw
32 31 0:29 / /hidden/new rw - zfs tank/new rw
33 22 0:30 / /odd\\011\\012\\134\xc2\x85caf\xe9 rw - zfs tank/odd rw
34 24 0:31 / /tank/web/.zfs/snapshot/a rw - zfs tank/web@a rw
35 22 0:32 / /tank/web2 rw - tmpfs  rw
"""

PLACES = [
    pytest.param("/tank/web/a.qcow2", ("tank/web", "a.qcow2"), id="file"),
    pytest.param("/tank/web/sub/a.qcow2", ("tank/web", "sub/a.qcow2"), id="file in a directory"),
    pytest.param("/tank/web", ("tank/web", "."), id="the mountpoint itself"),
    pytest.param("/tank/web/data/b.raw", ("tank/web/data", "b.raw"), id="nested mount"),
    pytest.param("/tank/webs/a", ("tank", "webs/a"), id="a longer name is another directory"),
    pytest.param("/tank/My VMs/a b.raw", ("tank/My VMs", "a b.raw"), id="blanks"),
    pytest.param("/srv/images/a.raw", ("tank/web", "images/a.raw"), id="bind mount of a directory"),
    pytest.param("/srv/images", ("tank/web", "images"), id="a bind mount itself"),
    pytest.param("/mnt/a.raw", ("tank/over", "a.raw"), id="mounted over another"),
    pytest.param("/hidden/deep/a", ("tank/hidden", "deep/a"), id="hidden by a later mount above"),
    pytest.param("/hidden/new/a", ("tank/new", "a"), id="mounted upon the later one"),
    pytest.param("/odd\t\n\\\x85caf\udce9/a", ("tank/odd", "a"), id="any byte in a mountpoint"),
    pytest.param("/tank/web/.zfs/snapshot/a/b", ("tank/web@a", "b"), id="inside a snapshot"),
    pytest.param("/tank/web2/a", ("tank", "web2/a"), id="mount that lies below the visible one"),
    pytest.param("/var/lib/a", None, id="not ZFS"),
    pytest.param("/", None, id="root"),
]


@pytest.fixture
def table(tmp_path: Path) -> list[Mount]:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    return mounttable.mounts(path)


@pytest.mark.parametrize(("path", "expected"), PLACES)
def test_dataset_of_path(table: list[Mount], path: str, expected: tuple[str, str] | None) -> None:
    assert mounttable.dataset_of_path(path, table) == expected


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        pytest.param("tank/web", "/tank/web", id="mounted"),
        pytest.param("tank/My VMs", "/tank/My VMs", id="blanks"),
        pytest.param("tank/over", "/mnt", id="mounted over another"),
        pytest.param("tank/deep", None, id="hidden"),
        pytest.param("tank/nowhere", None, id="not mounted"),
    ],
)
def test_mountpoint_of(table: list[Mount], dataset: str, expected: str | None) -> None:
    assert mounttable.mountpoint_of(dataset, table) == expected


def test_a_dataset_of_which_only_a_part_is_mounted_has_no_mountpoint() -> None:
    table = [Mount(1, 1, "/", "/", ""), Mount(2, 1, "/images", "/srv", "tank/web")]
    assert mounttable.mountpoint_of("tank/web", table) is None


@pytest.mark.parametrize(
    "root",
    [
        pytest.param(Mount(1, 1, "/", "/", "rpool/root"), id="its own parent"),
        pytest.param(Mount(1, 99, "/", "/", "rpool/root"), id="parent out of sight"),
        pytest.param(Mount(1, 0, "/", "/", "rpool/root"), id="parent nought"),
    ],
)
def test_root_on_zfs(root: Mount) -> None:
    table = [Mount(2, 1, "/", "/home", "rpool/home"), root]
    assert mounttable.dataset_of_path("/etc/a", table) == ("rpool/root", "etc/a")
    assert mounttable.dataset_of_path("/home/a", table) == ("rpool/home", "a")


def test_this_hosts_own_mount_table_is_understood() -> None:
    table = mounttable.mounts()
    assert any(mount.mountpoint == "/" for mount in table)
    assert not any(mount.dataset for mount in table if mount.mountpoint == "/proc")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/nonexistent", "/dev/zd-no-such"])
def test_no_volume(device: str) -> None:
    assert zfs.volume_of(device) is None


FAKE_ZFS = f"""\
#!{sys.executable} -SE
import json, os, signal, sys
world = json.load(open(os.path.join(os.path.dirname(sys.argv[0]), "world.json")))
with open(os.path.join(os.path.dirname(sys.argv[0]), "calls"), "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if "exit" in world:
    print(world["says"], file=sys.stderr)
    if world["exit"] < 0:
        os.kill(os.getpid(), -world["exit"])
    sys.exit(world["exit"])
sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
words, options = iter(sys.argv[1:]), {{}}
verb = next(words)
if verb == "get":
    sys.stdout.buffer.write(bytes.fromhex(world["got"]))
if verb != "list":
    sys.exit(0)
names = []
for word in words:
    if word in ("-t", "-o", "-d", "-s"):
        options[word] = next(words)
    elif not word.startswith("-"):
        names.append(word)
status = 0
for name in names or [n for n in world["rows"] if names or not options.get("-d") or "/" not in n]:
    row = world["rows"].get(name)
    if options.get("-d") == "1":
        for below, row in world["rows"].items():
            if below.startswith(name + "@"):
                print("\\t".join(row[column] for column in options["-o"].split(",")))
        continue
    if row is None:
        print(f"cannot open '{{name}}': dataset does not exist", file=sys.stderr)
        status = 1
    elif row["type"] in options["-t"].split(","):
        print("\\t".join(row[column] for column in options["-o"].split(",")))
sys.exit(status)
"""


class World:
    """What the fake `zfs` on the PATH knows; it counts its calls."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rows: dict[str, dict[str, str]] = {}
        program = directory / "zfs"
        program.write_text(FAKE_ZFS)
        program.chmod(stat.S_IRWXU)
        self._write({})

    def _write(self, world: dict[str, object]) -> None:
        (self._directory / "world.json").write_text(json.dumps({"rows": self._rows, **world}))

    def filesystem(self, name: str, **properties: str) -> None:
        defaults = {"compression": "off", "zvmsnap:mode": "-", "zvmsnap:recursive": "-"}
        defaults |= {"origin": "-", "mounted": "-", "canmount": "-", "mountpoint": "-"}
        defaults |= {"encryption": "off", "keystatus": "-"}
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
        }
        self._write({})

    def gets(self, said: bytes) -> None:
        """What `zfs get` says from now on."""
        self._write({"got": said.hex()})

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
    monkeypatch.setattr(zfs, "_check_gone", asked.append)
    return asked


def test_snapshots_of_which_some_are_missing(world: World, gone: list[str]) -> None:
    world.filesystem("tank")
    world.filesystem("tank/web")
    world.snapshot("tank/web@a", guid=2**64 - 1, createtxg=101)
    names = ["tank/web@b", "tank/web@a", "tank/web@a", "old/web@a", "tank/gone@a"]
    assert zfs.snapshots(names) == Answer(
        {"tank/web@a": Snapshot("tank/web", "a", 2**64 - 1, 101)},
        frozenset({"tank"}),
        homeless=frozenset({"old/web@a", "tank/gone@a"}),
    )
    assert gone == ["tank/gone@a", "tank/web@b"]
    assert len(world.calls) == 1


def test_no_snapshots_asked_for_costs_no_process(world: World) -> None:
    assert zfs.snapshots([]) == Answer({}, frozenset())
    assert world.calls == []


def test_pool_without_an_answer_vouches_for_nothing(world: World, gone: list[str]) -> None:
    assert zfs.snapshots(["tank/web@a"]).pools == frozenset()
    assert gone == []


def test_many_snapshots_cost_few_processes(world: World, gone: list[str]) -> None:
    world.filesystem("tank")
    names = [f"tank@{number}" for number in range(1200)]
    world.snapshot("tank@1199", guid=5, createtxg=6)
    answer = zfs.snapshots(names)
    assert list(answer.present) == ["tank@1199"]
    assert sorted(gone) == sorted(names[:-1])
    assert len(world.calls) == 3


def test_what_cannot_be_proven_gone_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(name: str) -> None:
        raise ZfsFailed(f"{name}: cannot be asked for")

    monkeypatch.setattr(zfs, "_check_gone", unsure)
    world.filesystem("tank")
    with pytest.raises(ZfsFailed, match="tank@a: cannot be asked for"):
        zfs.snapshots(["tank@a"])


QUESTIONS: list[Callable[[], object]] = [
    lambda: zfs.snapshots(["tank@a"]),
    zfs.all_snapshots,
    zfs.datasets,
]
QUESTION_IDS = ["snapshots", "all_snapshots", "datasets"]


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
    world.filesystem("tank")
    world.filesystem("tank/web")
    world.filesystem("old")
    world.snapshot("tank/web@a", guid=1, createtxg=2)
    world.snapshot("tank/My VMs@b c", guid=3, createtxg=4)
    assert zfs.all_snapshots() == Answer(
        {
            "tank/web@a": Snapshot("tank/web", "a", 1, 2),
            "tank/My VMs@b c": Snapshot("tank/My VMs", "b c", 3, 4),
        },
        frozenset({"tank", "old"}),
    )


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


def test_snapshots_knows_its_full_name() -> None:
    assert Snapshot("tank/web", "a b", 1, 2).full_name == "tank/web@a b"


def test_a_line_break_in_a_mountpoint(world: World) -> None:
    world.filesystem("tank", mountpoint="/a\nb")
    with pytest.raises(ZfsFailed, match="a property holds a line break, near 'b'"):
        zfs.datasets()


def test_uses(world: World) -> None:
    world.snapshot("tank/My VMs@a b", guid=2**64 - 1, createtxg=4)
    world.snapshot("tank/My VMs@c", guid=5, createtxg=6, clones="tank/x y,tank/z", userrefs="2")
    world.snapshot("tank/v@-", guid=7, createtxg=8, clones="-", userrefs="-")
    assert zfs.uses(["tank/My VMs", "tank/v"]) == [
        Use(Snapshot("tank/My VMs", "a b", 2**64 - 1, 4), (), 0),
        Use(Snapshot("tank/My VMs", "c", 5, 6), ("tank/x y", "tank/z"), 2),
        Use(Snapshot("tank/v", "-", 7, 8), (), 0),
    ]
    [call] = world.calls
    assert call[call.index("-s") + 1] == "createtxg"
    assert call[-2:] == ["tank/My VMs", "tank/v"]


@pytest.mark.parametrize("ask", [zfs.uses, zfs.local_properties])
def test_nothing_asked_for_is_not_everything(
    world: World, ask: Callable[[Sequence[str]], object]
) -> None:
    assert not ask([])
    assert world.calls == []


def test_local_properties(world: World) -> None:
    world.gets(
        b"tank/My VMs\tmountpoint\t/srv/My VMs\n"
        b"tank/My VMs\tcom.x:note\ttab\there, caf\xe9 and \xc2\x85 and \r\n"
        b"tank/v\tvolsize\t1048576\n"
        b"tank/v\tvolblocksize\t8192\n"
        b"tank/v\tkeylocation\tprompt\n"
        b"tank/v\trefreservation\t1048576\n"
    )
    assert zfs.local_properties(["tank/My VMs", "tank/v", "tank/plain"]) == {
        "tank/My VMs": {
            "mountpoint": "/srv/My VMs",
            "com.x:note": "tab\there, caf\udce9 and \x85 and \r",
        },
        "tank/v": {"refreservation": "1048576"},
        "tank/plain": {},
    }
    [call] = world.calls
    assert call[call.index("-s") + 1] == "local,received"
    assert call[-4:] == ["all", "tank/My VMs", "tank/v", "tank/plain"]


def test_a_line_break_in_a_property(world: World) -> None:
    world.gets(b"tank\tcom.x:note\ttwo\nlines\n")
    with pytest.raises(ZfsFailed, match="line break, near 'lines'"):
        zfs.local_properties(["tank"])


def test_marked(world: World) -> None:
    world.gets(b"tank/My VMs\tweb 2\ntank/b\ta\tb\n")
    assert zfs.marked("zvmsnap:clone") == {"tank/My VMs": "web 2", "tank/b": "a\tb"}
    [call] = world.calls
    assert call[call.index("-s") + 1] == "local"
    assert call[-1] == "zvmsnap:clone"
    world.gets(b"")
    assert zfs.marked("zvmsnap:clone") == {}


VERBS: list[tuple[Callable[[], object], list[list[str]]]] = [
    (
        lambda: zfs.clone("a b@c d", "e f", {"mountpoint": "/x y", "u:v": "-o caf\udce9; $(x)"}),
        [["clone", "-o", "mountpoint=/x y", "-o", "u:v=-o caf\udce9; $(x)", "a b@c d", "e f"]],
    ),
    (lambda: zfs.clone("a@b", "c", {}), [["clone", "a@b", "c"]]),
    (lambda: zfs.promote("a b"), [["promote", "a b"]]),
    (lambda: zfs.rename("a b", "c d"), [["rename", "a b", "c d"]]),
    (lambda: zfs.set_property("a b", "u:v", "x=y z"), [["set", "u:v=x=y z", "a b"]]),
    (lambda: zfs.inherit("a b", "u:v"), [["inherit", "u:v", "a b"]]),
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


def test_a_device_that_never_comes() -> None:
    assert zfs.device_of("tank/My VMs/a") == "/dev/zvol/tank/My+VMs/a"
    with pytest.raises(ZfsFailed, match=r"^/dev/zvol/no/such\+one: did not appear within 0.01 s"):
        zfs.wait_device("no/such one", 0.01)


def test_another_volumes_device_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = iter(["tank/former", None, "tank/v"])
    monkeypatch.setattr(zfs, "volume_of", lambda device: next(behind))
    monkeypatch.setattr(zfs, "_LOOK_EVERY_S", 0)
    zfs.wait_device("tank/v", 60)
    assert list(behind) == []
