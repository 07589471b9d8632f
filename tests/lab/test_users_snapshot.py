"""A guest on a snapshot of its user's own: it is as it was, when a round of sanoid is over."""

import back
import pytest
import scenario
from scenario import WEB

from labkit import guests
from labkit.api import Lab

TOP = "/tank/vm/web/s1.qcow2"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


def own_snapshot(lab: Lab) -> None:
    lab.run(
        "virsh snapshot-create-as web s1 --disk-only --atomic --no-metadata "
        f"--diskspec vda,snapshot=external,file={TOP} --diskspec vdb,snapshot=no"
    )


def test_the_user_can_still_commit(lab: Lab) -> None:
    """With AppArmor libvirt writes `deny` for the images below an overlay when that is merged."""
    own_snapshot(lab)
    on_top = {**WEB.disks, "vda": TOP}
    scenario.take(lab)
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    scenario.assert_on_base(lab, "web", on_top)
    lab.run("virsh blockcommit web vda --active --pivot --wait")
    scenario.assert_at_rest(lab, WEB)
    scenario.counts_on(lab)
    scenario.assert_counted_through(lab, "web")


@pytest.mark.whole
def test_the_user_can_still_commit_after_a_restore(lab: Lab) -> None:
    """libvirt before 12.1 denies the images below to each guest that it starts."""
    own_snapshot(lab)
    scenario.take(lab)
    name = back.hourly(lab)
    stored = guests.counts(lab, "web")[-1]
    back.restore(lab, f"web@{name}")
    scenario.wait_until("it goes back", lambda: len(back.jumps(lab)) == 1, timeout_s=180)
    assert back.jumps(lab)[0][1] < stored
    lab.run("virsh blockcommit web vda --active --pivot --wait")
    scenario.counts_on(lab)
    assert guests.mismatches(lab, "web") == []
    assert guests.boots(lab, "web") == 1
