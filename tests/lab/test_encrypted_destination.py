"""A destination that may not read what it keeps: `encrypt_to`, with the real age."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import back
import far
import pytest
import readme
import scenario
import test_firmware
from back import zvmsnap
from far import DESTINATION
from terminal import typed
from test_firmware import SAFE

from labkit import guests
from labkit.api import Lab

IDENTITY = "/root/zvmsnap.key"
THERE = f"{far.VAULT}/safe"
# Names of the files with what RAM, definitions and manifests of points here have in clear.
PLAIN = (
    "grep -rlaE 'LibvirtQemudSave|SeaBIOS|<domain|/tank/vm/safe/disk.raw' {directory} "
    "| xargs -r -n 1 basename | sort -u"
)


@pytest.mark.whole
@pytest.mark.long
def test_nobody_there_can_read_it_and_it_comes_back(lab_session: Lab) -> None:
    lab = lab_session
    far.built(lab)
    test_firmware.made(lab)
    install, keygen, fetch_safe = readme.commands("A destination that may not read the points")
    for command in (install, keygen):
        typed(lab, command)
    public = lab.run(f"age-keygen -y {IDENTITY}").stdout.strip()
    scenario.configure(
        lab, f'[[destination]]\ntarget = "{DESTINATION}"\nencrypt_to = ["{public}"]\n'
    )
    here = f"{scenario.VAULT}/safe"
    first = take_and_send(lab)
    assert_nothing_plain(lab, here)
    # All of it goes again, though next to nothing has changed.
    second = take_and_send(lab)
    assert second["points_bytes"] > 0.8 * first["points_bytes"], (first, second)
    assert_nothing_plain(lab, here)
    assert lab.run(f"find {scenario.VAULT}/.encrypted -type f", check=False).stdout == ""

    # Without the key one sees what is there, and nothing more.
    listed = zvmsnap(lab, "list", "--remote", DESTINATION).stdout
    assert len(listed.splitlines()) == 3 and "memory" in listed
    newest = scenario.points(lab, "safe")[-1]
    scenario.assert_pages(newest)
    (name,) = newest.names
    stored = guests.disk_count(lab, f"/{SAFE.top}/.zfs/snapshot/{name}/disk.raw")
    burn(lab)
    since = guests.serial_size_bytes(lab, "safe")
    fetch = ("fetch", "--yes", "--trust")
    refused = zvmsnap(lab, *fetch, "safe@latest", DESTINATION, status=1)
    assert "--identity" in refused.stderr
    lab.run("age-keygen -o /root/another")
    wrong = zvmsnap(lab, *fetch, "--identity", "/root/another", "safe@latest", DESTINATION,
                    status=1)
    assert "age failed" in wrong.stderr
    assert scenario.points(lab) == [] and "safe" not in lab.run("virsh list --all --name").stdout

    typed(lab, fetch_safe.replace("web@latest", "safe@latest"))
    back.assert_goes_on(lab, "safe", stored, since)
    back.assert_nothing_left(lab, SAFE)
    lab.run("virsh destroy safe")
    assert (test_firmware.variable(lab), test_firmware.tpm(lab, "read")) == ("one", "one")
    assert_nothing_plain(lab, here)


def take_and_send(lab: Lab) -> Mapping[str, Any]:
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    unit = far.send(lab, "safe", DESTINATION)
    assert not unit["error"], unit
    print(f"SEND {unit['points_bytes']} bytes of points, encrypted")
    return unit


def assert_nothing_plain(lab: Lab, here: str) -> None:
    """Beside readable manifests there are files of age alone; here the same is plain to see."""
    names = set(lab.run(f"find {THERE} -type f -printf '%f\\n'").stdout.split())
    assert names == {
        "manifest.json", "point.tar.zst.age", "memory.pages.zst.age", "memory.rest.zst.age"
    }
    heads = lab.run(f"for each in {THERE}/*/*.age; do head -n 1 $each; done").stdout
    assert set(heads.splitlines()) == {"age-encryption.org/v1"}
    assert lab.run(PLAIN.format(directory=THERE)).stdout == ""
    for point in far.points(lab):
        if point["domain"] == "safe":
            assert point["encrypted"] and not point["memory"]["sha256"], point
    plain = set(lab.run(PLAIN.format(directory=here)).stdout.split())
    assert {"memory.pages", "memory.rest", "domain.xml", "manifest.json"} <= plain
    keys = lab.run(f"grep -rl AGE-SECRET-KEY {far.VAULT} {scenario.VAULT}", check=False).stdout
    assert keys == ""


def burn(lab: Lab) -> None:
    """Nothing of the guest is left on the first host but its key."""
    lab.run("virsh destroy safe; virsh undefine safe --nvram --tpm")
    lab.run("until zfs destroy -r tank/vm; do sleep 1; done", timeout_s=scenario.ROUND_LIMIT_S)
    lab.run(f"rm -rf {scenario.VAULT}/* {scenario.VAULT}/.zvmsnap-vault {scenario.JOURNAL}")
