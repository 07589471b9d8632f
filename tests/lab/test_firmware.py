"""UEFI variables and the secrets of a TPM belong to the machine, and come back with it."""

from __future__ import annotations

from pathlib import Path

import back
import pytest
import scenario
from scenario import Guest

from labkit import guests
from labkit.api import Lab
from labkit.domains import OVMF_CODE

SECRET = (Path(__file__).parent / "tpmsecret.py").read_text()
SAFE = Guest("safe", ("tank/vm/safe",), {"vda": "/tank/vm/safe/disk.raw"})
# OVMF does not survive nested emulation for long; SeaBIOS lies in the same kind of flash.
FLASH = "/var/lib/libvirt/images/seabios.img"
NVRAM = f"{guests.NVRAM_DIR}/safe_VARS.fd"
VARIABLE_AT = 100_000


def tpm_dir(lab: Lab, name: str = "safe") -> str:
    return f"/var/lib/libvirt/swtpm/{lab.run(f'virsh domuuid {name}').stdout.strip()}/tpm2"


def tpm(lab: Lab, *words: str, name: str = "safe") -> str:
    said = lab.run(f"python3 - {tpm_dir(lab, name)} {' '.join(words)}", stdin=SECRET)
    return said.stdout.strip()


def set_variable(lab: Lab, value: str) -> None:
    lab.run(f"printf {value} | dd of={NVRAM} bs=1 seek={VARIABLE_AT} conv=notrunc status=none")


def variable(lab: Lab, nvram: str = NVRAM) -> str:
    return lab.run(f"dd if={nvram} bs=1 skip={VARIABLE_AT} count=3 status=none").stdout


def made(lab: Lab) -> None:
    """`safe` runs instead of `web`, with variable and secret `one`, and sanoid knows of it."""
    lab.run("virsh destroy web && virsh undefine web && zfs create tank/vm/safe")
    drive = guests.make_disk(lab, guests.Disk(SAFE.disks["vda"]))
    lab.run(f"cp -L /usr/share/seabios/bios-256k.bin {FLASH}")
    xml = guests.domain_xml("safe", [drive], uefi=True, tpm=True)
    xml = xml.replace("machine='q35'", "machine='pc'").replace(OVMF_CODE, FLASH)
    guests.define(lab, xml)
    lab.run("virsh start safe && virsh destroy safe")  # makes TPM and NVRAM
    set_variable(lab, "one")
    tpm(lab, "define")
    tpm(lab, "write", "one")
    guests.start(lab, "safe")
    scenario.write_sanoid_conf(lab, scenario.section("tank/vm/safe"), daily="0", monthly="0")


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """Of `safe` a point is taken while variable and secret are `one`; now they are `two`."""

    def make(lab: Lab) -> None:
        made(lab)
        scenario.take(lab)
        scenario.counts_on(lab, "safe")
        change(lab)

    scenario.stage(lab_session, "firmware", scenario.configured, make)
    return lab_session


def change(lab: Lab) -> None:
    lab.run("virsh destroy safe")
    set_variable(lab, "two")
    tpm(lab, "write", "two")
    assert (variable(lab), tpm(lab, "read")) == ("two", "two")
    guests.start(lab, "safe")


def name_of_point(lab: Lab) -> str:
    point = scenario.points(lab, "safe")[0]
    assert point.manifest["level"] == "memory" and not point.manifest["tpm_warning"]
    scenario.assert_pages(point)
    return f"safe@{point.manifest['run']}"


def test_restore_puts_both_back_and_keeps_those_of_now(lab: Lab) -> None:
    name = name_of_point(lab)
    back.restore(lab, name)
    guests.wait_counts(lab, "safe", guests.counts(lab, "safe")[-1])
    lab.run("virsh destroy safe")
    assert (variable(lab), tpm(lab, "read")) == ("one", "one")

    of_two = back.safety_point(lab)
    back.restore(lab, of_two, "--cold")
    lab.run("virsh destroy safe")
    assert (variable(lab), tpm(lab, "read")) == ("two", "two")
    back.restore(lab, name, "--cold", "--no-safety")
    lab.run("virsh destroy safe")
    assert (variable(lab), tpm(lab, "read")) == ("one", "one")


def test_clones_have_their_own(lab: Lab) -> None:
    name = name_of_point(lab)
    back.zvmsnap(lab, "clone", name, "warm")
    back.zvmsnap(lab, "clone", "--cold", name, "cold")
    for each in ("safe", "warm", "cold"):
        assert scenario.state(lab, each) == "running"
        lab.run(f"virsh destroy {each}")
    for each in ("warm", "cold"):
        own = f"{guests.NVRAM_DIR}/{each}_VARS.fd"
        directory = tpm_dir(lab, each)
        assert (variable(lab, own), tpm(lab, "read", name=each)) == ("one", "one")
        back.zvmsnap(lab, "clone", "--destroy", each)
        lab.run(f"test ! -e {own} && test ! -e {directory}")
    assert (variable(lab), tpm(lab, "read")) == ("two", "two")
