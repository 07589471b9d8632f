"""Chains of four images that somebody else has left below a counting guest's disks."""

from __future__ import annotations

import json
from shlex import quote

import pytest
import readme
import scenario
from back import zvmsnap
from scenario import WEB
from terminal import typed

from labkit import guests
from labkit.api import Lab

pytestmark = pytest.mark.whole

# A name with a blank, as people have them.
OVERLAY = "/tank/vm/web/{target} left {number}.qcow2"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


def leave_chain(lab: Lab) -> dict[str, list[str]]:
    """Put both disks on three overlays, with counts on each; returns their images, top first."""
    images = {target: [path] for target, path in scenario.disks(lab, "web").items()}
    for number in (1, 2, 3):
        specs = []
        for target in images:
            overlay = OVERLAY.format(target=target, number=number)
            lab.run(f"rm -f {quote(overlay)}")
            images[target].insert(0, overlay)
            specs.append(f"--diskspec {quote(f'{target},file={overlay}')}")
        lab.run(
            f"virsh -q snapshot-create-as web left{number} --no-metadata --disk-only --atomic "
            + " ".join(specs)
        )
        scenario.counts_on(lab)
    return images


def below(lab: Lab, image: str) -> list[str]:
    """The images that qemu-img sees below it."""
    said = lab.run(f"qemu-img info -U --backing-chain --output=json {quote(image)}").stdout
    return [each["filename"] for each in json.loads(said)][1:]


def disk_count(lab: Lab, image: str) -> int:
    if not image.endswith(".qcow2"):
        return guests.disk_count(lab, image)
    lab.run(f"ln -sfn {quote(image)} /tmp/image")
    return guests.disk_count(lab, "/tmp/image", "qcow2")


def test_live(lab: Lab) -> None:
    images = leave_chain(lab)
    look, commit, pull = readme.commands("Merge chains that others have left")
    done = typed(lab, look)
    assert f"vda: 4 images become {WEB.disks['vda']}:" in done.stdout
    assert scenario.disks(lab, "web") == {target: chain[0] for target, chain in images.items()}
    typed(lab, commit)
    scenario.assert_on_base(lab, "web", WEB.disks)
    scenario.counts_on(lab)
    # The next point is as if nothing had been.
    scenario.take(lab)
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"

    images = leave_chain(lab)
    # One disk, as the page has it; and all that is left.
    typed(lab, pull)
    assert below(lab, images["vda"][0]) == [] and below(lab, images["vdb"][0]) == images["vdb"][1:]
    zvmsnap(lab, "flatten", "web", "--yes", "--method", "pull")
    tops = {target: chain[0] for target, chain in images.items()}
    scenario.assert_on_base(lab, "web", tops)
    assert [below(lab, top) for top in tops.values()] == [[], []]
    scenario.counts_on(lab)
    assert guests.mismatches(lab, "web") == []
    assert zvmsnap(lab, "recover").stdout.startswith("nothing to recover")


@pytest.mark.parametrize("method", ["commit", "pull"])
def test_off(lab: Lab, method: str) -> None:
    images = leave_chain(lab)
    lab.run("virsh -q destroy web")
    counts = {disk_count(lab, chain[0]) for chain in images.values()}
    zvmsnap(lab, "flatten", "web", "--yes", "--method", method)
    result = {
        target: chain[3] if method == "commit" else chain[0] for target, chain in images.items()
    }
    assert scenario.disks(lab, "web", persistent=True) == result
    assert [below(lab, image) for image in result.values()] == [[], []]
    assert {disk_count(lab, image) for image in result.values()} == counts
    guests.start(lab, "web")


def test_a_golden_image_and_libvirts_snapshots(lab: Lab) -> None:
    """Nothing is touched where somebody else would miss it."""
    images = leave_chain(lab)
    base = images["vda"][3]
    lab.run(
        f"qemu-img create -q -f qcow2 -F raw -b {base} /var/lib/libvirt/images/w2.qcow2 && "
        "virsh dumpxml --inactive web | sed -e 's|<name>web|<name>w2|' -e '/<uuid>/d' "
        "-e \"s|/tank/vm/web/vda left 3.qcow2|/var/lib/libvirt/images/w2.qcow2|\" "
        "> /root/w2.xml && virsh -q define /root/w2.xml"
    )
    done = zvmsnap(lab, "flatten", "web", "--yes", "--disk", "vda", status=1)
    assert f"w2 is on {base}, too" in done.stderr
    lab.run("virsh -q undefine w2")
    lab.run("virsh -q snapshot-create-as web known --disk-only --atomic")
    done = zvmsnap(lab, "flatten", "web", "--yes", status=1)
    assert "libvirt's snapshot known names its images" in done.stderr
    assert scenario.disks(lab, "web") != WEB.disks
    scenario.counts_on(lab)
