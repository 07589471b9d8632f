"""What a point has of each resource: the table of zvmsnap.inventory.coverage."""

from __future__ import annotations

import pytest

from zvmsnap.inventory import coverage
from zvmsnap.inventory.coverage import Fate
from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.zfs.mounts import DiskLocation

INSIDE, OUTSIDE = DiskLocation("tank/web", "f"), DiskLocation("fast/x", "f")
ELSEWHERE = "is not on a dataset of this snapshot"


def of(text: str) -> Resource:
    """The last thing that is named."""
    return resources_of(f"<domain>{text}</domain>")[-1]


PSTORE = "<devices><pstore backend='acpi-erst'><path>/p</path></pstore></devices>"
TABLE = [
    # The definition, where it is, what becomes of it, why, and whether a point tells of it.
    ("<os><nvram>/v.fd</nvram></os>", None, Fate.COVERED, "", False),
    ("<os><nvram>/v.fd</nvram></os>", INSIDE, Fate.COVERED, "", False),
    ("<os><varstore path='/v.json'/></os>", None, Fate.COVERED, "", False),
    ("<os><nvram type='block'><source dev='/dev/zvol/tank/web'/></nvram></os>", INSIDE,
     Fate.COVERED, "", False),
    ("<os><nvram type='network'><source protocol='nbd' name='v'><host name='h' port='1'/></source>"
     "</nvram></os>", None, Fate.COVERED, "", False),
    ("<os><loader type='pflash'>/both.fd</loader></os>", INSIDE, Fate.COVERED, "", True),
    ("<os><loader type='pflash'>/both.fd</loader></os>", None, Fate.OBSTACLE, ELSEWHERE, True),
    ("<os><loader type='pflash' readonly='yes'>/c.fd</loader></os>", None,
     Fate.HARMLESS, "holds no state", False),
    (PSTORE, OUTSIDE, Fate.OBSTACLE, ELSEWHERE, True),
    ("<devices><memory model='nvdimm'><source><path>/n</path></source></memory></devices>", OUTSIDE,
     Fate.OBSTACLE, ELSEWHERE, True),
    ("<devices><memory model='nvdimm'><source><path>/n</path></source><readonly/></memory>"
     "</devices>", OUTSIDE, Fate.HARMLESS, "holds no state", False),
    ("<devices><tpm><backend type='emulator'><source type='dir' path='/t'/></backend></tpm>"
     "</devices>", None, Fate.COVERED, "", False),
    ("<devices><tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
     "</devices>", None, Fate.COVERED, "", False),
    ("<devices><tpm><backend type='external'><source type='unix' path='/s'/></backend></tpm>"
     "</devices>", None, Fate.COVERED, "", False),
    ("<devices><hostdev mode='subsystem' type='mdev'><source><address uuid='u'/></source></hostdev>"
     "</devices>", None, Fate.OBSTACLE, "is a device of the host", True),
    ("<devices><hostdev mode='subsystem' type='usb'><source><vendor id='1'/><product id='2'/>"
     "</source></hostdev></devices>", None, Fate.HARMLESS, "holds no state", False),
    ("<devices><filesystem><source dir='/srv'/><target dir='t'/></filesystem></devices>", OUTSIDE,
     Fate.HARMLESS, "holds no state", False),
    ("<devices><serial type='file'><source path='/log'/></serial></devices>", OUTSIDE,
     Fate.HARMLESS, "holds no state", False),
    ("<devices><disk type='file'><backingStore type='file'><source file='/b'/></backingStore>"
     "<target dev='vda'/></disk></devices>", OUTSIDE, Fate.HARMLESS, "is only read", False),
    ("<devices><newdevice path='x'/></devices>", None,
     Fate.OBSTACLE, "is not known to zvmsnap", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "fate", "why", "is_told"), TABLE)
def test_the_table(
    text: str, where: DiskLocation | None, fate: Fate, why: str, is_told: bool
) -> None:
    judged = coverage.judge(of(text), where, {"tank/web"})
    assert (judged.fate, judged.why, judged.is_told) == (fate, why, is_told)


@pytest.mark.parametrize("kind", Kind)
def test_no_writable_state_elsewhere_is_harmless(kind: Kind) -> None:
    judged = coverage.judge(Resource("it", kind, "/x", True, True), OUTSIDE, {"tank/web"})
    assert judged.fate is Fate.OBSTACLE
    assert judged.why
