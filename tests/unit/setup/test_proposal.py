from pathlib import Path

import pytest

import zvmsnap
from tests.fakes.check_scene import WEB, CheckedHost
from tests.fakes.guest import OTHER
from zvmsnap.check.facts import gather
from zvmsnap.config import sanoid_conf
from zvmsnap.setup import proposal
from zvmsnap.setup.proposal import Proposal

HOOKS = Path(zvmsnap.__file__).resolve().parents[1] / "hooks"


def proposed(host: CheckedHost, before: str = "") -> Proposal:
    if before:
        host.sanoid_conf.write_text(before)
    facts = gather(host.root)
    return proposal.propose(facts, before, facts.on_zfs)


def keys(made: Proposal, title: str) -> dict[str, str]:
    found = sanoid_conf.parse(made.sanoid_conf).sections[title]
    return {key: values[0] for key, values in found.items()}


def test_from_nothing(bare: CheckedHost) -> None:
    made = proposed(bare)
    assert (made.notes, made.tops) == ([], [WEB])
    assert keys(made, WEB) == {"use_template": "zvmsnap", "recursive": "zfs"}
    template = keys(made, "template_zvmsnap")
    assert template["pre_snapshot_script"] == str(HOOKS / "pre-snapshot")
    assert (template["script_timeout"], template["hourly"]) == ("0", "24")
    assert template["force_post_snapshot_script"] == "yes"


def test_what_was_proposed_is_all(bare: CheckedHost) -> None:
    made = proposed(bare)
    assert proposed(bare, made.sanoid_conf).sanoid_conf == made.sanoid_conf
    for hook in HOOKS.iterdir():
        bare.program(str(hook).lstrip("/"))
    assert [each.check for each in bare.trouble() if each.check.startswith("sanoid")] == []
    assert [each.check for each in bare.trouble() if each.check.startswith("hooks")] == []


def test_disks_below_a_common_parent(bare: CheckedHost) -> None:
    bare.dataset("tank/vm/db")
    bare.dataset("tank/vm/db/a")
    bare.dataset("tank/vm/db/b")
    bare.guest("db", OTHER, "tank/vm/db/a", "tank/vm/db/b")
    made = proposed(bare)
    assert made.tops == [WEB, "tank/vm/db"]


def test_disks_of_no_common_parent(bare: CheckedHost) -> None:
    bare.dataset("tank/a")
    bare.guest("db", OTHER, "tank/a", "cheap/vault")
    made = proposed(bare)
    assert made.tops == [WEB]
    (note,) = made.notes
    assert note.startswith("db: its disks (cheap/vault, tank/a) have no parent of their own")


def test_disks_of_several_guests_on_one_dataset(bare: CheckedHost) -> None:
    bare.guest("db", OTHER, WEB)
    assert proposed(bare).tops == [WEB]


def test_a_parent_takes_the_place_of_its_children(bare: CheckedHost) -> None:
    bare.guest("db", OTHER, "tank/vm")
    made = proposed(bare)
    assert list(sanoid_conf.parse(made.sanoid_conf).sections) == ["tank/vm", "template_zvmsnap"]


OWN = f"""\
# ours, do not touch
[{WEB}]
    use_template = production  , daily
    recursive = zfs     
    script_timeout = 60
# the end

[template_production]
hourly = 36

[template_daily]
daily = 7
"""  # noqa: W291 - an administrator's blanks stay


def test_hooks_are_added_to_a_section_of_the_administrators(bare: CheckedHost) -> None:
    made = proposed(bare, OWN)
    added = [line for line in made.sanoid_conf.splitlines() if line not in OWN.splitlines()]
    assert [line.split(" = ")[0] for line in added] == [
        "    pre_snapshot_script",
        "    post_snapshot_script",
        "    pruning_script",
        "    force_post_snapshot_script",
    ]
    for line in added:
        assert made.sanoid_conf.count(line) == 1
    assert (
        "".join(made.sanoid_conf.splitlines(keepends=True)).replace(
            "".join(f"{line}\n" for line in added), ""
        )
        == OWN
    )
    assert made.notes == [f"[{WEB}] in sanoid.conf has script_timeout = 60: say script_timeout = 0"]


def test_a_guest_below_a_section_that_is_recursive(bare: CheckedHost) -> None:
    before = "[tank]\nrecursive = yes\nhourly = 5\n"
    bare.host.known.remove(bare.web)
    bare.web = bare.guest("web", bare.web.uuid, WEB)
    made = proposed(bare, before)
    assert made.sanoid_conf.startswith(before)
    assert keys(made, WEB)["recursive"] == "zfs"
    assert "use_template" not in keys(made, WEB)
    bare.sanoid_conf.write_text(made.sanoid_conf)
    policy = gather(bare.root).snapshotted[WEB]
    assert (policy.counts["hourly"], policy.is_recursive) == (5, True)
    assert policy.keys["script_timeout"] == "0"


def test_what_is_snapshotted_apart_is_left_to_the_administrator(bare: CheckedHost) -> None:
    bare.dataset("tank/db")
    bare.host.known.remove(bare.web)
    bare.web = bare.guest("web", bare.web.uuid, WEB, "tank/db")
    before = f"[{WEB}]\nhourly = 1\n[tank/db]\nhourly = 1\n"
    made = proposed(bare, before)
    assert made.sanoid_conf == before
    assert "snapshots its disks apart" in made.notes[0]


@pytest.mark.parametrize("mode", ["off", "crash"])
def test_guests_that_are_left_out(bare: CheckedHost, mode: str) -> None:
    bare.datasets[WEB] = bare.datasets[WEB].__class__(**{**vars(bare.datasets[WEB]), "mode": mode})
    assert proposed(bare).tops == ([] if mode == "off" else [WEB])
