from pathlib import Path

from tests.fakes.check_scene import WEB, CheckedHost
from tests.fakes.guest import OTHER
from zvmsnap.check.facts import Sanoid, gather
from zvmsnap.config import sanoid_conf


def test_what_is_asked_for_once(checked: CheckedHost) -> None:
    facts = gather(checked.root)
    assert facts.findings == []
    assert [guest.datasets for guest in facts.guests or ()] == [[WEB]]
    assert facts.tops_of(facts.on_zfs[0]) == {WEB}
    assert facts.snapshotted.keys() == {WEB, f"{WEB}/data"}
    assert facts.sanoid and facts.sanoid.version == (2, 2, 0)
    assert facts.keeps == {WEB: "24"}


def test_guests_that_are_left_out_or_elsewhere(checked: CheckedHost) -> None:
    other = checked.root / "elsewhere"
    other.mkdir()
    checked.guest("db", OTHER)
    facts = gather(checked.root)
    assert len(facts.guests or ()) == 2
    assert [guest.name for guest in facts.on_zfs] == ["web"]


def test_by_which_snapshot_a_dataset_is_snapshotted() -> None:
    text = (
        "[tank/a]\nrecursive = zfs\n[tank/b]\nrecursive = yes\n[named]\npath = tank/c\n"
        "[tank/d]\nautosnap = no\n[tank/e]\nprocess_children_only = yes\n"
    )
    names = [f"tank/{each}" for each in ("a", "a/x", "b", "b/x", "c", "d", "e")]
    policies = sanoid_conf.resolve(
        sanoid_conf.parse(text),
        sanoid_conf.DEFAULTS,
        lambda top: [name for name in names if name.startswith(f"{top}/")],
        (2, 2, 0),
    )
    sanoid = Sanoid(Path("/usr/sbin/sanoid"), (2, 2, 0), Path("/x"), policies=policies)
    tops = {name: top.path if (top := sanoid.top_of(name)) else "" for name in names}
    assert tops == {
        "tank/a": "tank/a",
        "tank/a/x": "tank/a",
        "tank/b": "tank/b",
        "tank/b/x": "tank/b/x",
        "tank/c": "tank/c",
        "tank/d": "",
        "tank/e": "",
    }


def test_the_administrators_defaults_file(checked: CheckedHost) -> None:
    checked.file(
        "etc/sanoid/sanoid.defaults.conf", "[template_default]\nscript_timeout = 77\nautosnap = 1\n"
    )
    facts = gather(checked.root)
    assert facts.sanoid and facts.sanoid.known_keys == {"script_timeout", "autosnap"}
    assert "sanoid.unknown-key" in {each.check for each in checked.trouble()}
