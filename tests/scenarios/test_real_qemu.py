"""RAM images of the QEMU that is installed here: taken apart, put together, and loaded by it.

No guest runs: its RAM is filled when the machine is made. What it has is compared byte for byte, as
QEMU has it in the guest's own addresses, before and after.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ram.page_files import apart, opened, together
from tests.unit.ram.streams import head, load
from zvmsnap.common.errors import NotUnderstood
from zvmsnap.ram.page_image import read_rest

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(not QEMU, reason="no qemu-system-x86_64")

MIB = 1 << 20
LIMIT_S = 60.0
FILL_AT, FILL_BYTES = 16 * MIB, 5 * MIB + 4096


class Machine:
    """A machine of QEMU, by the methods that QMP has; its CPUs stand still."""

    def __init__(self, arguments: Sequence[str]) -> None:
        always = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S"]
        self._process = subprocess.Popen(
            [str(QEMU), *always, "-qmp", "stdio", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "QMP" in self._said()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin
        question = {"execute": command, "arguments": arguments}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        while "event" in (answer := self._said()):
            pass
        assert "return" in answer, answer
        return answer["return"]

    def wait(self, command: str, until: str, meanwhile: Sequence[str]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while (status := self.ask(command).get("status")) != until:
            assert status in meanwhile and time.monotonic() < deadline_s, self.ask(command)
            time.sleep(0.01)

    def ram(self, directory: Path, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """What it has at some addresses of so many bytes."""
        file, found = directory / "ram", []
        for address, count in places:
            self.ask("pmemsave", val=address, size=count, filename=str(file))
            found.append(file.read_bytes())
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said


@contextmanager
def machine(*arguments: str) -> Iterator[Machine]:
    made = Machine(arguments)
    try:
        yield made
    finally:
        made.end()


def saved(source: Machine, directory: Path, capabilities: Sequence[str] = ()) -> bytes:
    """An image of it, with a head as libvirt's."""
    wanted = [{"capability": each, "state": True} for each in capabilities]
    source.ask("migrate-set-capabilities", capabilities=wanted)
    source.ask("migrate", uri=f"exec:cat > {directory}/stream")
    source.wait("query-migrate", "completed", ("setup", "active", "device"))
    return head() + (directory / "stream").read_bytes()


def backend(kind: str, name: str, mib: int, more: str = "") -> list[str]:
    return ["-object", f"memory-backend-{kind},id={name},size={mib}M{more}"]


# QEMU 10.0 ends when it saves a block that is larger than the first one: see virt/domain_xml.py.
CELLS = [
    *("-smp", "4", "-m", "64M,slots=4,maxmem=1G"),
    *backend("ram", "ram-node0", 40),
    *backend("ram", "ram-node1", 24),
    *("-numa", "node,nodeid=0,cpus=0-1,memdev=ram-node0"),
    *("-numa", "node,nodeid=1,cpus=2-3,memdev=ram-node1"),
]
DIMM = [*backend("ram", "memdimm0", 32), "-device", "pc-dimm,memdev=memdimm0,id=dimm0,node=0"]
IN_FILE = ",mem-path={directory}/file,share=on"
DEVICES = [
    *("-vga", "std", "-device", "virtio-net-pci", "-device", "virtio-balloon-pci"),
    *("-drive", "if=pflash,format=raw,unit=0,readonly=on,file={directory}/flash0"),
    *("-drive", "if=pflash,format=raw,unit=1,file={directory}/flash1"),
]
# As libvirt has them, and the ends of the names of some of their blocks.
MACHINES: dict[str, tuple[list[str], dict[str, int]]] = {
    "i440fx": (["-machine", "pc", "-m", "64M"], {"pc.ram": 64, "pc.bios": 0}),
    "one piece": (["-machine", "q35", "-m", "64M"], {"pc.ram": 64}),
    "devices and flash": (
        ["-machine", "q35", "-m", "64M", *DEVICES],
        {"vga.vram": 16, "virtio-net-pci.rom": 0, "system.flash0": 2, "system.flash1": 1},
    ),
    "cells and a DIMM": (
        ["-machine", "q35", *CELLS, *DIMM],
        {"ram-node0": 40, "ram-node1": 24, "memdimm0": 32},
    ),
    "memfd": (
        [*backend("memfd", "mem", 64, ",share=on"), "-machine", "q35,memory-backend=mem"],
        {"mem": 64},
    ),
    "a file": (
        [*backend("file", "mem", 64, IN_FILE), "-machine", "q35,memory-backend=mem"],
        {"mem": 64},
    ),
    "NVDIMM": (
        [
            *("-machine", "q35,nvdimm=on", "-m", "64M,slots=4,maxmem=1G"),
            *backend("file", "memnvdimm0", 32, IN_FILE),
            *("-device", "nvdimm,memdev=memnvdimm0,id=nvdimm0"),
        ],
        {"pc.ram": 64, "memnvdimm0": 32},
    ),
}


def arguments_of(kind: str, directory: Path) -> list[str]:
    """With what fills a part of its RAM, and of all that it has beyond 4 GiB."""
    for name, length in (("fill", FILL_BYTES), ("flash0", 2 * MIB), ("flash1", MIB)):
        if not (directory / name).exists():
            (directory / name).write_bytes(random.Random(name).randbytes(length))
    words = MACHINES[kind][0]
    if "-m" not in words:
        words = [*words, "-m", "64M"]
    fills = [FILL_AT, *([4096 * MIB] if "-device" in words and "maxmem" in str(words) else [])]
    loads = [f"loader,file={directory}/fill,addr={address:#x},force-raw=on" for address in fills]
    return [
        *(word.replace("{directory}", str(directory)) for word in words),
        *(word for each in loads for word in ("-device", each)),
    ]


def places_of(source: Machine) -> list[tuple[int, int]]:
    """Where its RAM is, but for what it has below 1 MiB."""
    devices = source.ask("query-memory-devices")
    hotplugged = [(each["data"]["addr"], each["data"]["size"]) for each in devices]
    return [(MIB, 63 * MIB), *hotplugged]


@pytest.mark.parametrize("kind", MACHINES)
def test_memory_of_each_kind_is_loaded_as_it_was(tmp_path: Path, kind: str) -> None:
    arguments = arguments_of(kind, tmp_path)
    with machine(*arguments) as source:
        places = places_of(source)
        ram = source.ram(tmp_path, places)
        image = saved(source, tmp_path)
    assert (tmp_path / "fill").read_bytes() in ram[0]

    taken = apart(image, tmp_path / "point")
    with opened(tmp_path / "point") as paged:
        blocks = {each.name: each.bytes for each in read_rest(paged).table.blocks}
    for end, mib in MACHINES[kind][1].items():
        (length,) = [length for name, length in blocks.items() if name.endswith(end)]
        assert length == mib * MIB or not mib, blocks
    again = together(tmp_path / "point", taken)
    assert load(again) == load(image)

    if (tmp_path / "file").exists():
        (tmp_path / "file").write_bytes(b"\xff" * (tmp_path / "file").stat().st_size)
    (tmp_path / "stream").write_bytes(again[len(head()) :])
    with machine(*arguments, "-incoming", f"exec:cat {tmp_path}/stream") as target:
        target.wait("query-status", "prelaunch", ("inmigrate",))
        assert target.ram(tmp_path, places) == ram


NOT_UNDERSTOOD = {
    "ignore-shared": ("memfd", ["x-ignore-shared"], "configuration/capabilities"),
    "dirty-bitmaps": ("one piece", ["dirty-bitmaps"], r"of type (8 before|1, in) RAM"),
}


@pytest.mark.parametrize(
    ("kind", "capabilities", "why"), NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD
)
def test_capabilities_that_change_the_stream(
    tmp_path: Path, kind: str, capabilities: list[str], why: str
) -> None:
    with machine(*arguments_of(kind, tmp_path)) as source:
        image = saved(source, tmp_path, capabilities)
    with pytest.raises(NotUnderstood, match=why):
        apart(image, tmp_path / "point")
    assert os.listdir(tmp_path / "point") == ["memory"]


def test_memory_that_is_not_plugged(tmp_path: Path) -> None:
    arguments = [
        *("-machine", "q35", "-m", "64M,slots=4,maxmem=1G"),
        *backend("ram", "mem", 64),
        *("-device", "virtio-mem-pci,memdev=mem,id=vm0,requested-size=0"),
    ]
    with machine(*arguments) as source:
        image = saved(source, tmp_path)
    # From 8.0 on QEMU says early what is plugged, in a section among those of RAM.
    with pytest.raises(NotUnderstood, match=r"not all of the block|type 4, in RAM"):
        apart(image, tmp_path / "point")
