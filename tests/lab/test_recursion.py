"""Whether sanoid takes recursive snapshots: what it does, and what zvmsnap has expected."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenario
from scenario import WEB

from labkit.api import Lab

CONFS = Path(__file__).parents[1] / "data" / "sanoid_conf"
JUDGE = Path(__file__).parent / "sanoid_judge.py"
JUDGE_LIMIT_S = 1200

# sanoid reads the first value, as since 2.2 of a key that stands there twice; a parser of another
# kind reads the second one, or `<<EOT`.
ODD = "[{}]\nuse_template = vm\nrecursive = <<EOT\nzfs\nEOT\nrecursive = no\n\n"


@pytest.mark.whole
@pytest.mark.state("ready")
def test_the_rehearsal_compared_with_what_sanoid_does(lab: Lab) -> None:
    for path in CONFS.iterdir():
        lab.put(f"/root/confs/{path.name}", path.read_bytes())
    lab.put("/root/judge.py", JUDGE.read_text())
    done = lab.run(
        "cd /root && PYTHONPATH=/opt/zvmsnap python3 judge.py /usr/sbin/sanoid "
        "/usr/share/sanoid/sanoid.defaults.conf confs/*.conf --generated=20",
        check=False,
        timeout_s=JUDGE_LIMIT_S,
    )
    print(done.stdout)
    assert done.returncode == 0, done
    read = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    recursive = {"dup_zfs_then_no", "heredoc", "crlf", "latin1_comment", "equals_equals"}
    assert {read[f"{name}.conf"] for name in recursive} == {"tank/vm"}
    assert read["child_zfs_parent_yes.conf"] == "tank/vm, tank/vm/web, tank/vm/web/data"
    assert read["nested_zfs.conf"] == "tank"
    assert read["template_zfs.conf"] == ""


@pytest.mark.whole
def test_what_sanoid_did_is_compared_with_what_was_expected(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    scenario.write_sanoid_conf(lab, ODD.format(WEB.top))
    lab.run(f"zfs set zvmsnap:mod=off tank && zfs set zvmsnap:recursive=yes {WEB.top}")
    said = scenario.take(lab)
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    assert said.stderr.count("tank: zvmsnap:mod='off' is ignored") == 1, said
    assert "is zvmsnap:mode meant?" in said.stderr
    assert f"{WEB.top}: zvmsnap:recursive='yes' is ignored" in said.stderr
    assert "expected" not in said.stderr
    scenario.assert_at_rest(lab)

    # More than was expected: guests below have no point of it, and that is said.
    lab.run(f"zfs inherit zvmsnap:mod tank && zfs set zvmsnap:recursive=off {WEB.top}")
    scenario.pass_hours(lab, 1)
    said = scenario.take(lab)
    assert f"{WEB.top} was snapshotted with all datasets below it, and that was not" in said.stderr
    scenario.assert_at_rest(lab)
    levels = [point.manifest["level"] for point in scenario.points(lab, "web")]
    assert levels == ["memory", "crash"]

    # Less than was expected: a point with half of its disks would be none.
    lab.run(f"zfs set zvmsnap:recursive=on {WEB.top}")
    scenario.write_sanoid_conf(lab, ODD.format(WEB.top).replace("\nzfs\n", "\nno\n"))
    scenario.pass_hours(lab, 1)
    said = scenario.take(lab)
    assert f"{WEB.top} was snapshotted without the datasets below it, and that" in said.stderr
    assert "no point, as not all disks are in one snapshot" in said.stderr
    scenario.assert_at_rest(lab)
    assert len(scenario.points(lab, "web")) == 2

    # sanoid under another name, as some distributions wrap it.
    lab.run(f"zfs inherit zvmsnap:recursive {WEB.top} && cp /usr/sbin/sanoid /root/.sanoid-wrapped")
    scenario.write_sanoid_conf(lab, ODD.format(WEB.top))
    scenario.pass_hours(lab, 1)
    said = lab.run(
        "perl /root/.sanoid-wrapped --take-snapshots --verbose", timeout_s=scenario.ROUND_LIMIT_S
    )
    assert "not expected" not in said.stderr, said
    scenario.assert_at_rest(lab)
    assert scenario.points(lab, "web")[-1].manifest["level"] == "memory"
    scenario.assert_counted_through(lab, "web")
