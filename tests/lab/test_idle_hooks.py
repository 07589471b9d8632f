"""A hook that has nothing to do sees that by itself; where a guest may have a disk, it works."""

import json

import pytest
import scenario
from scenario import WEB

from labkit import guests
from labkit.api import CODE_DIR, Lab

NAME = "autosnap_2001-01-01_00:00:00_hourly"
# Which of these datasets have nothing for pre, by the answer that ends the hook; and what it took.
ASK = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from zvmsnap.hooks import idle
answers = {}
for dataset in sys.argv[3:]:
    environment = {"SANOID_TARGET": dataset, "SANOID_SNAPNAME": sys.argv[2]}
    begun_s = time.monotonic()
    answers[dataset] = idle.has_nothing_to_do(["pre"], {**os.environ, **environment})
    print(f"{dataset}: {time.monotonic() - begun_s:.2f} s", file=sys.stderr)
print(json.dumps(answers))
"""
TIMED = """
import os, subprocess, sys, time
def took_s(words, **variables):
    begun_s = time.monotonic()
    subprocess.run(words, env={**os.environ, **variables}, check=True, capture_output=True)
    return time.monotonic() - begun_s
code, name, *datasets = sys.argv[1:]
called = {"python3 -c pass": (["python3", "-c", "pass"], "")}
for dataset in datasets:
    for hook in ("pre-snapshot", "post-snapshot", "pruning"):
        called[f"{hook} {dataset}"] = ([f"{code}/hooks/{hook}"], dataset)
for what, (words, dataset) in called.items():
    runs = [took_s(words, SANOID_TARGET=dataset, SANOID_SNAPNAME=name) for _ in range(4)]
    print(f"{what}: {sorted(runs[1:])[1]:.2f} s")
"""


@pytest.mark.whole
def test_only_where_a_guest_may_have_a_disk(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run(
        "zfs create cheap/files && echo > /cheap/files/disk && zfs create -o canmount=off cheap/off"
        " && zfs create cheap/empty && mkdir -p /cheap/empty/a/b"
        " && zfs create -s -V 16M cheap/volume && udevadm settle"
    )
    elsewhere = ("cheap/files", "cheap/off", "cheap/empty", "cheap/volume")

    def idle(*datasets: str) -> dict[str, bool]:
        words = " ".join(f"'{each}'" for each in datasets)
        lab.put("/root/ask.py", ASK)
        done = lab.run(f"python3 /root/ask.py {CODE_DIR} {NAME} {words}")
        print(done.stderr)
        return dict(json.loads(done.stdout))

    assert idle(*WEB.datasets, *elsewhere) == {
        **dict.fromkeys(WEB.datasets, False),
        **dict.fromkeys(elsewhere, True),
    }

    lab.put("/root/timed.py", TIMED)
    print(lab.run(f"python3 /root/timed.py {CODE_DIR} {NAME} {' '.join(elsewhere)}").stdout)

    # Guests that were defined this moment, and are off.
    guests.define(lab, guests.domain_xml("file", [guests.Disk("/cheap/files/disk")]))
    guests.define(lab, guests.domain_xml("volume", [guests.Disk("/dev/zvol/cheap/volume")]))
    assert idle(*elsewhere) == {
        "cheap/files": False, "cheap/volume": False, "cheap/off": True, "cheap/empty": True,
    }
    lab.run("virsh -q undefine file && virsh -q undefine volume")
    assert set(idle(*elsewhere).values()) == {True}

    # No path leads to the disk of `web` any more, but QEMU has it open.
    lab.run(f"zfs rename {WEB.datasets[1]} tank/renamed && udevadm settle")
    assert idle("tank/renamed") == {"tank/renamed": False}
