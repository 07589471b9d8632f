"""pre is killed while libvirt writes the RAM image; libvirt goes on without it.

The RAM must be larger than the pipe to libvirt's helper, which holds 1 MiB. QEMU writes the end of
an image with its big lock held: a helper that has not read anything by then stops QEMU as a whole,
and with it every question to libvirt about this guest, "is a job under way?" too. In the bulk
before, as here, QEMU waits without that lock.
"""

import pytest
import scenario
from scenario import WEB

from labkit import bootsector, guests
from labkit.api import Lab

FILL_MIB = 24

HELPER = "/usr/lib/libvirt/libvirt_iohelper"
BEGUN, GO_ON = "/run/dump-begun", "/run/dump-go-on"
# Not found by polling and stopped: nobody knows how far it is when that is done.
HELD_UP = f"""#!/bin/sh
touch {BEGUN}
until test -e {GO_ON}; do sleep 0.2; done
exec {HELPER}.real "$@"
"""


def larger_than_a_pipe(lab: Lab) -> None:
    """Let `web` start anew, from disks that make it fill some of its RAM."""
    code = bootsector.boot_code(fill_mib=FILL_MIB)
    lab.run(f"virsh destroy {WEB.name} && rm {guests.SERIAL_DIR}/{WEB.name}.log")
    for path in WEB.disks.values():
        lab.run(f"dd of={path} conv=fsync,notrunc status=none", stdin=code)
    guests.start(lab, WEB.name)


def hold_up_the_dump(lab: Lab) -> None:
    """Let the next dump begin, and then wait until it is let go."""
    lab.run(f"mv {HELPER} {HELPER}.real")
    lab.put(HELPER, HELD_UP, mode=0o755)


@pytest.mark.whole
def test_image_that_comes_too_late_is_not_published(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    larger_than_a_pipe(lab)
    hold_up_the_dump(lab)
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 2")
    with scenario.running(lab, "sanoid --take-snapshots --verbose") as sanoid:
        scenario.wait_until(
            "the dump to begin",
            lambda: lab.run(f"test -e {BEGUN}", check=False).returncode == 0,
            timeout_s=scenario.ROUND_LIMIT_S,
        )
        lab.run("pkill -KILL -x pre-snapshot")
        said = sanoid.wait()
    assert "a job (snapshot) is under way" in said, said
    names = scenario.snapshots(lab, WEB.top)
    assert len(names) == 3, said
    assert scenario.points(lab) == []
    scenario.assert_on_base(lab, "web", WEB.disks)

    lab.run(f"touch {GO_ON}")
    scenario.wait_until(
        "the guard to finish what libvirt has made of it",
        lambda: scenario.leftovers(lab) == [] and len(scenario.points(lab)) == 1,
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    late = scenario.the_point(lab, "web")
    assert (late.manifest["level"], late.manifest["memory"]) == ("crash", None)
    assert "killed" in late.manifest["reason"]
    assert late.names == set(names)
    scenario.assert_at_rest(lab)

    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    _, whole = scenario.points(lab, "web")
    assert whole.manifest["level"] == "memory"
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    (name,) = whole.names
    scenario.assert_coherent(lab, WEB, name, whole.image)
