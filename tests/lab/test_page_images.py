"""RAM that is stored as pages, hour after hour, of a guest under load: each point is whole."""

import json

import back
import pytest
import scenario
from back import zvmsnap
from scenario import Guest

from labkit import guests
from labkit.api import Lab

LOADED = Guest("loaded", ("tank/vm/loaded",), {"vda": "/tank/vm/loaded/loaded.raw"})
MEMORY_MIB, DIRTY_MIB = 64, 8
CPU_SHARE = "<cputune><period>100000</period><quota>30000</quota></cputune>"
HOURS = 12
# Some of the first, the middle and the last.
PRUNED = (0, 4, 5, 10)


def _make(lab: Lab) -> None:
    lab.run("virsh destroy web && virsh undefine web && zfs create tank/vm/loaded")
    disk = guests.make_disk(
        lab, guests.Disk(LOADED.disks["vda"]), dirty_mib=DIRTY_MIB, memory_mib=MEMORY_MIB
    )
    guests.define(lab, guests.domain_xml("loaded", [disk], memory_mib=MEMORY_MIB, extra=CPU_SHARE))
    guests.start(lab, "loaded")
    scenario.write_sanoid_conf(lab, scenario.section(LOADED.top), daily="0", monthly="0")


@pytest.mark.whole
@pytest.mark.long
def test_each_of_twelve_hours_loads_and_counts_on(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    _make(lab)
    for _ in range(HOURS):
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
        scenario.counts_on(lab, "loaded")
    made = scenario.points(lab, "loaded")
    assert len(made) == HOURS
    for point in made:
        assert point.manifest["level"] == "memory"
        assert point.manifest["memory"]["file"] == "memory.pages", point.manifest["memory"]
    zvmsnap(lab, "verify", "loaded")

    # Whatever goes, the others are whole.
    for number in PRUNED:
        for name in made[number].names:
            lab.run(f"zfs destroy tank/vm/loaded@{name}")
    zvmsnap(lab, "prune")
    left = [point for number, point in enumerate(made) if number not in PRUNED]
    assert [point.directory for point in scenario.points(lab, "loaded")] == [
        point.directory for point in left
    ]
    verified = json.loads(zvmsnap(lab, "verify", "--json", "loaded").stdout)["points"]
    assert [result["why"] for result in verified.values()] == [""] * len(left)

    # The newest first: to go back destroys what is newer.
    for point in reversed(left):
        (name,) = point.names
        scenario.assert_coherent(lab, LOADED, name, point.image)
    back.assert_nothing_left(lab, LOADED)
