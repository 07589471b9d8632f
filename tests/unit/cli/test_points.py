import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import UUID
from tests.fakes.restore_scene import NAME, Scene
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.bulk.sharing import OnDisk
from zvmsnap.cli import points
from zvmsnap.common.process import Process
from zvmsnap.journal import describe
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import CloneOperation, Operations, StartState
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import Manifest, SnapshotRef, Timing
from zvmsnap.points.memory_image import RamUsage
from zvmsnap.retention import old_memory
from zvmsnap.virt import qemu_conf

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


def test_list_of_an_empty_vault(run: Run) -> None:
    assert run("list") == (0, "no points\n", "")
    assert run("list", "web") == (0, "no points of web\n", "")
    assert json.loads(run("list", "--json")[1]) == {
        "json_version": 1,
        "points": [],
        "interrupted": [],
        "damaged": [],
    }


def test_list_filters_by_guest_and_reports_damage(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    put(manifest())
    put(manifest(domain="mail", capture=f"{UUID}.000000c2"))
    code, out, _ = run("list", "mail")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail"]
    (put(manifest(domain="odd")) / "manifest.json").write_text("{")
    code, out, err = run("list")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["GUEST", "mail", "web"]
    assert "odd" in err and len(err.splitlines()) == 1


def test_list_shows_what_is_interrupted(
    run: Run, tmp_path: Path, put: Callable[[Manifest], Path], entry: Callable[..., Entry]
) -> None:
    journal = Journal(tmp_path / "journal")
    uuids = [f"c0ffee00-0000-4000-8000-00000000000{n}" for n in (1, 2, 3)]
    dead = entry(uuid=uuids[0], domain="web", step="store")
    alive = entry(uuid=uuids[1], domain="db", owner=Process.of(os.getpid()))
    recovery = entry(uuid=uuids[2], domain="mail", snapshot_names=(), run="", owner=Process.none())
    for each in (dead, alive, recovery):
        journal.write(each)
    vault.incoming(tmp_path / "vault", "web", f"{uuids[0]}.00000001")
    stray = vault.incoming(tmp_path / "vault", "a/b", f"{uuids[0]}.00000009")
    gone = tmp_path / "vault" / "web" / ".removing-x"
    gone.mkdir()
    web = [
        f"web: {describe.work(dead)} is interrupted at step store (publishing): "
        "zvmsnap recover ends it",
        f"{gone}: its removal was interrupted; zvmsnap recover ends it",
    ]
    db = f"db: {describe.work(alive)} is {describe.progress(alive)}"
    mail = f"mail: {describe.work(recovery)} is {describe.progress(recovery)}"
    odd = f"{stray}: its publishing was interrupted; zvmsnap recover ends it"

    code, out, _ = run("list")
    assert (code, set(out.splitlines())) == (0, {*web, db, mail, odd})
    assert run("list", "web")[1].splitlines() == web
    assert run("list", "a/b")[1].splitlines() == [odd]
    assert json.loads(run("list", "--json", "db")[1]) == {
        "json_version": 1,
        "points": [],
        "interrupted": [db],
        "damaged": [],
    }


def test_list_warns_of_a_format_that_cannot_be_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: "qemu.conf says sparse")
    for arguments in (["list"], ["list", "--json"]):
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (0, 1)
        assert err.endswith("error: qemu.conf says sparse\n")


def test_list_shows_results_of_verify_and_operations(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    scene_run("verify")
    heading, line = scene_run("list")[1].splitlines()
    assert line[heading.index("VERIFIED") :].startswith("read ")
    (point.directory / "memory.pages").unlink()
    scene_run("verify")
    assert "FAILED " in scene_run("list")[1]
    assert json.loads(scene_run("list", "--json")[1])["points"][0]["verified"]["why"]
    operation = CloneOperation(
        domain="w2",
        uuid=scene.guest.uuid,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        step="disks",
        memory=True,
        start_state=StartState.RUNNING,
        capture=f"{scene.guest.uuid}.00000001",
        network="none",
    )
    Operations(scene.config.journal_dir).write(operation)
    under_way = f"w2: {describe.operation(operation)}"
    assert scene_run("list", "w2")[1].splitlines()[-1] == under_way
    assert json.loads(scene_run("list", "--json")[1])["interrupted"] == [under_way]


@pytest.mark.parametrize(
    "name", [NAME, NAME.removesuffix("_hourly"), "latest", "2026-11-20T04:00+01:00"]
)
def test_show_takes_any_name_of_the_point(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], name: str
) -> None:
    directory = put(manifest())
    code, out, _ = run("show", f"web@{name}", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["directory"] == str(directory)
    assert shown["alive"] == [f"tank/web@{NAME}"]
    assert shown["complete_names"] == [NAME]


def test_examples_of_show_run(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    daily = NAME.replace("hourly", "daily")
    created = datetime(2026, 11, 20, 3).astimezone().isoformat()
    snapshots = (SnapshotRef("tank/web", NAME, 11, 101), SnapshotRef("tank/web", daily, 12, 101))
    put(manifest(snapshots=snapshots, created=created))
    examples = re.findall(r"zvmsnap show (\S+)", points.show.__doc__ or "")
    assert len(examples) == 3
    for example in examples:
        assert run("show", example)[0] == 0


@pytest.mark.parametrize("text", ["web", "web@", "@x", "web@x", "nobody@" + NAME])
def test_show_of_no_point_is_one_line_and_exit_2(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], text: str
) -> None:
    put(manifest())
    code, out, err = run("show", text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err


def test_show_of_a_name_that_two_points_share_asks_which(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    first = put(manifest())
    second = put(manifest(capture=f"{UUID}.000000c2"))
    code, _, err = run("show", f"web@{NAME}")
    assert code == 2
    assert f"web@{first.name}, web@{second.name}" in err
    assert run("show", f"web@{second.name}")[0] == 0


def test_prune_removes_only_without_dry_run(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    kept = put(manifest())
    gone = put(
        manifest(
            domain="old",
            snapshots=(SnapshotRef("tank/old", NAME, 5, 5),),
            capture=f"{UUID}.000000c2",
        )
    )
    code, out, _ = run("prune", "--dry-run", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert gone.exists()
    code, out, _ = run("prune", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [f"old@{gone.name}"])
    assert not gone.exists() and kept.exists()
    assert run("prune") == (0, "nothing to remove\n", "")


def test_ram_that_is_kept_no_longer(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest], pools: FakeZfs
) -> None:
    """`show` says until when, `prune --dry-run` what goes, and `list` what is gone."""
    names = ["a_hourly", "b_hourly"]
    pools.present = {f"tank/web@{name}": guid for guid, name in enumerate(names, 21)}
    pools.properties = [("tank", "zvmsnap:keep-memory", "1")]
    for guid, name in enumerate(names, 21):
        own = manifest(run=name, capture=f"{UUID}.000000{guid}", timing=Timing(pause_s=2))
        refs = (SnapshotRef("tank/web", name, guid, guid, pool_guid=70),)
        directory = put(msgspec.structs.replace(own, snapshots=refs))
        (directory / "memory.img").write_bytes(b"RAM!")
    going = "until the next point, or prune"
    assert f"    kept     {going}\n" in run("show", "web@a_hourly")[1]
    assert json.loads(run("show", "web@a_hourly", "--json")[1])["memory_kept"] == going
    assert "until 1 more points have RAM (1)\n" in run("show", "web@b_hourly")[1]

    line = "RAM of point web@a_hourly: 4B, kept no longer (keep-memory)\n"
    assert run("prune", "--dry-run")[1] == f"would remove {line}"
    assert json.loads(run("prune", "-n", "--json")[1])["removed_memory"] == ["web@a_hourly"]
    code, out, _ = run("prune")
    assert (code, out) == (0, f"removed {line}")
    assert run("prune") == (0, "nothing to remove\n", "")

    first, second = run("list")[1].splitlines()[1:]
    assert "crash" in first and first.endswith("RAM removed by keep-memory")
    assert "memory" in second and "removed" not in second
    shown = run("show", "web@a_hourly")[1]
    assert "level crash" in shown and "note       RAM removed by keep-memory" in shown
    assert "  times      paused 2.00 s" in shown  # it was, when it was taken
    assert "    kept  " not in shown


def test_prune_exits_1_if_it_needs_a_person(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    (put(manifest()) / "manifest.json").unlink()
    code, out, _ = run("prune")
    assert (code, out.startswith("damaged: ")) == (1, True)


def test_list_names_files_of_another_version(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "journal" / "c0ffee00-0000-4000-8000-000000000001.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"schema": 9, "owner": {"pid": 1, "started": 1, "boot": "b"}}')
    assert run("list")[1].startswith(f"{path}: schema 9 is not one this version reads")


def test_what_ram_takes_on_the_disk(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_image, "on_disk", lambda _file: OnDisk(1 << 20, 2 << 20))
    monkeypatch.setattr(old_memory, "standing", lambda *_: None)
    point = scene.point()
    files = [point.directory / name for name in ("memory.pages", "memory.rest")]
    taken = sum(file.stat().st_blocks for file in files) * 512
    known = {"disk_bytes": taken, "alone_bytes": 2 << 20, "shared_bytes": 4 << 20}
    heading, line = scene_run("list")[1].splitlines()
    assert line[heading.index("ALONE") :].split()[0] == "2.0M"
    (listed,) = json.loads(scene_run("list", "--json")[1])["points"]
    assert listed["memory_on_disk"] == known
    assert json.loads(scene_run("show", WEB, "--json")[1])["memory_on_disk"] == known
    assert "on disk  2.0M alone, 4.0M shared with others" in scene_run("show", WEB)[1]

    # To ask takes long, and nobody waits for 10 000 answers.
    assert points._usages(0)(point) == RamUsage(taken, None, None)
    (point.directory / "memory.rest").unlink()
    assert json.loads(scene_run("show", WEB, "--json")[1])["memory_on_disk"] is None
    assert "on disk  unknown" in scene_run("show", WEB)[1]
