"""What ZFS says has changed is all that is read; where it does not say it, all is compared."""

import pytest

from tests.fakes.backup_scene import Scene
from zvmsnap.backup import changed
from zvmsnap.zfs import stream
from zvmsnap.zfs.stream import NotUnderstood


class Stream:
    """In place of `zfs send`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str]] = []
        self.ranges: list[tuple[int, int]] = []
        self.fails = False
        patch.setattr(stream, "changed_ranges", self.changed)
        self.which = (9, 5)
        # On ZFS a file in a snapshot has the number of the original.
        patch.setattr(changed, "_which_file", lambda _path: self.which)

    def changed(
        self, since: str, snapshot: str, objects: frozenset[int]
    ) -> dict[int, list[tuple[int, int]]]:
        if self.fails:
            raise NotUnderstood("no")
        self.asked.append((since, snapshot))
        return dict.fromkeys(objects, self.ranges)


@pytest.fixture
def sent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Stream:
    return Stream(monkeypatch)


def test_only_what_zfs_names(scene: Scene, sent: Stream) -> None:
    scene.write(0, b"a" * 200_000)
    scene.back_up(scene.point("one"))
    scene.write(70_000, b"b" * 1000)
    sent.ranges = [(65_536, 131_072)]
    point = scene.point("two")
    backup = scene.back_up(point)
    assert sent.asked == [("tank/web@one", "tank/web@two")]
    assert scene.content(backup) == scene.snapshot_of(point)
    assert backup.manifest.disks[0].compared.startswith("64 KiB have changed, as ZFS says")


def test_a_bookmark_does(scene: Scene, sent: Stream) -> None:
    first = scene.back_up(scene.point("one"))
    assert set(scene.bookmarks) == {f"tank/web#zvmsnap_backup_{first.manifest.id[:16]}"}
    scene.snapshots.clear()
    scene.write(0, b"x")
    sent.ranges = [(0, 1)]
    point = scene.point("two")
    backup = scene.back_up(point)
    (since, _) = sent.asked[-1]
    assert since == f"tank/web#zvmsnap_backup_{first.manifest.id[:16]}"
    assert scene.content(backup) == scene.snapshot_of(point)


def test_older_bookmarks_go(scene: Scene, sent: Stream) -> None:
    made = [scene.back_up(scene.point(f"p{number}")) for number in range(4)]
    kept = {f"tank/web#zvmsnap_backup_{made[n].manifest.id[:16]}" for n in (0, 3)}
    assert set(scene.bookmarks) == kept


def test_otherwise_all_is_compared(scene: Scene, sent: Stream) -> None:
    scene.back_up(scene.point("one"))
    scene.write(0, b"x")
    sent.fails = True
    point = scene.point("two")
    backup = scene.back_up(point)
    assert scene.content(backup) == scene.snapshot_of(point)
    assert backup.manifest.disks[0].compared == "all of it was compared"


def test_another_file_of_that_name(scene: Scene, sent: Stream) -> None:
    scene.back_up(scene.point("one"))
    sent.which = (9, 6)
    scene.write(0, b"x")
    point = scene.point("two")
    assert scene.content(scene.back_up(point)) == scene.snapshot_of(point)
    assert sent.asked == []
