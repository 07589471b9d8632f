"""What the scenarios share: a lab with sanoid's configuration, rounds of the real sanoid, proofs.

Nothing here imports the product: what it left behind is read as an operator would read it.
"""

from __future__ import annotations

import json
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from labkit import guests, settings
from labkit.api import CODE_DIR, Completed, Lab
from labkit.recipes import WEB_FILE, WEB_VOLUME

VAULT = "/cheap/vault"
STAGING = "/var/lib/zvmsnap/staging"
JOURNAL = "/var/lib/zvmsnap/journal"
# What is in the journal without any work that is unfinished.
LASTING = "! -name vault.id ! -name seal.key ! -name failures.count"
# What sending leaves there for good.
NOT_UNDER_WAY = ("! -path '*/send-status*' ! -path '*/mirrors*' "
                 "! -name fetches ! -name operations ! -name waiting ! -name late")
SANOID_CONF = "/etc/sanoid/sanoid.conf"
CONFIG = "/etc/zvmsnap/config.toml"
HOOKS = f"{CODE_DIR}/hooks"
EXPORTED = "/root/exported.img"

# A guard against a hang, far above what a round takes on a loaded machine.
ROUND_LIMIT_S = 900.0
PROOF_COUNTS = 10
_SAMPLE_EVERY_S = 0.1

EXAMPLE_CONF = (settings.CHECKOUT_DIR / "sanoid.conf.example").read_text()


@dataclass(frozen=True)
class Guest:
    """A counting guest: its name, the datasets that a moment of it holds, its disks by target."""

    name: str
    datasets: tuple[str, ...]
    disks: Mapping[str, str]

    @property
    def top(self) -> str:
        """The dataset that sanoid's section names."""
        return self.datasets[0]


WEB = Guest(
    "web", ("tank/vm/web", "tank/vm/web/data"), {"vda": WEB_FILE.path, "vdb": WEB_VOLUME.path}
)


# -- stages: states of the lab that are made once, of the code of now


def stage(lab: Lab, name: str, parent: Callable[[Lab], None], make: Callable[[Lab], None]) -> None:
    """Bring the lab to the stage `name`, which `make` makes from `parent` the first time."""

    def whole() -> None:
        parent(lab)
        make(lab)

    lab.stage(name, whole)


def with_code(lab: Lab, state: str) -> None:
    """That state, with the checkout's code in it."""
    stage(lab, f"{state}-with-code", lambda lab: lab.reset(state), Lab.carry_code)


def configured(lab: Lab) -> None:
    """The guest `web` counts; sanoid has our example as it is, nothing is taken yet."""

    def make(lab: Lab) -> None:
        lab.put(SANOID_CONF, EXAMPLE_CONF)
        configure(lab)

    stage(lab, "configured", lambda lab: with_code(lab, "guests"), make)


def taken(lab: Lab) -> None:
    """As `configured`, and then sanoid took the first moment: hourly, daily and monthly."""

    def make(lab: Lab) -> None:
        take(lab)

    stage(lab, "taken", configured, make)


# -- the lab's configuration


def configure(lab: Lab, text: str = "", vault: str = VAULT) -> None:
    """Write config.toml: the lab's vault, limits for a host as slow as the lab, and `text`."""
    if "memory_max_pause_s" not in text:
        table = "[limits]\n"
        keys = f"{table}memory_max_pause_s = 60\n"
        text = text.replace(table, keys) if table in text else f"{text}\n{keys}"
    lab.put(CONFIG, f'vault = "{vault}"\n{text}\n')


def mount_small(lab: Lab, size_mib: int) -> str:
    """Mount a file system of that size, too small for much; returns where."""
    lab.run(
        f"truncate -s {size_mib}M /srv/small.img && mkfs.ext4 -q -m 0 /srv/small.img &&"
        "mkdir /srv/small && mount /srv/small.img /srv/small"
    )
    return "/srv/small"


def write_sanoid_conf(lab: Lab, *sections: str, **keys: str | None) -> None:
    """The example for other `sections`, with other values for `keys` of its template, or none."""
    example, _, template = EXAMPLE_CONF.partition("[template_vm]\n")
    lines = template.splitlines()
    for key, value in keys.items():
        (position,) = [n for n, line in enumerate(lines) if line.startswith(f"\t{key} = ")]
        lines[position : position + 1] = [] if value is None else [f"\t{key} = {value}"]
    lab.put(SANOID_CONF, "\n".join(["".join(sections) or example, "[template_vm]", *lines, ""]))


def section(dataset: str, *lines: str) -> str:
    """A section for one dataset."""
    return "\n".join([f"[{dataset}]", "use_template = vm", "recursive = zfs", *lines, "", ""])


def pass_hours(lab: Lab, hours: int) -> None:
    """Set the clock forward."""
    now = datetime.fromtimestamp(int(lab.run("date +%s").stdout), tz=UTC)
    lab.set_clock((now + timedelta(hours=hours)).isoformat())


# -- sanoid and the hooks


def take(lab: Lab, *, before: str = "true", after: str = "true", check: bool = True) -> Completed:
    """One round of `sanoid --take-snapshots`, with shell code around it.

    What sanoid leaves behind, should it die, is waited for too.
    """
    return lab.run(
        f"{before}; sanoid --take-snapshots --verbose; {after}",
        check=check,
        timeout_s=ROUND_LIMIT_S,
    )


def prune(lab: Lab) -> Completed:
    """One round of `sanoid --prune-snapshots`, which sees what is there now."""
    return lab.run(
        "rm -rf /var/cache/sanoid/*; sanoid --prune-snapshots --force-prune --verbose",
        timeout_s=ROUND_LIMIT_S,
    )


def hook(lab: Lab, name: str, dataset: str, names: Sequence[str], **environment: str) -> Completed:
    """Call a hook by hand, with the environment that sanoid gives it."""
    return lab.run(
        f"{HOOKS}/{name}",
        check=False,
        timeout_s=ROUND_LIMIT_S,
        env={
            "SANOID_TARGET": dataset,
            "SANOID_TARGETS": dataset,
            "SANOID_SNAPNAME": names[0],
            "SANOID_SNAPNAMES": ",".join(names),
            **environment,
        },
    )


# -- what is there


def snapshots(lab: Lab, dataset: str) -> dict[str, int]:
    """Name and guid of a dataset's own snapshots, oldest first."""
    listed = lab.run(f"zfs list -Hp -d 1 -t snapshot -s createtxg -o name,guid {quote(dataset)}")
    pairs = (line.split("\t") for line in listed.stdout.splitlines())
    return {name.partition("@")[2]: int(guid) for name, guid in pairs}


@dataclass(frozen=True)
class Point:
    """A point as it lies in the vault."""

    directory: str
    manifest: Mapping[str, Any]

    @property
    def ties(self) -> dict[str, int]:
        """`dataset@name` to guid."""
        return {
            f"{tie['dataset']}@{tie['name']}": tie["guid"] for tie in self.manifest["snapshots"]
        }

    @property
    def names(self) -> set[str]:
        """The snapshot names."""
        return {tie["name"] for tie in self.manifest["snapshots"]}

    @property
    def image(self) -> str:
        """The path of its RAM image; of a page image, that of its pages."""
        return f"{self.directory}/{self.manifest['memory']['file']}"

    @property
    def timing(self) -> Mapping[str, float]:
        """Seconds, as measured by the hooks."""
        measured: Mapping[str, float] = self.manifest["timing"]
        return measured

    @property
    def pause_parts(self) -> Mapping[str, float]:
        """The same, of what its guest was held for."""
        measured: Mapping[str, float] = self.manifest["timing"]["pause_parts"]
        return measured


def points(lab: Lab, domain: str = "*") -> list[Point]:
    """The points of a guest, or of all, oldest first."""
    pattern = domain if domain == "*" else quote(domain)
    said = lab.run(
        f"cd {VAULT} && for one in {pattern}/*/manifest.json; do "
        'test -e "$one" || continue; dirname "$one"; tr -d "\\n" < "$one"; echo; done'
    ).stdout.splitlines()
    return [
        Point(f"{VAULT}/{said[line]}", json.loads(said[line + 1]))
        for line in range(0, len(said), 2)
    ]


def the_point(lab: Lab, domain: str) -> Point:
    """The only point of a guest."""
    (found,) = points(lab, domain)
    return found


def assert_pages(point: Point) -> None:
    """It has RAM, as pages."""
    memory = point.manifest["memory"]
    assert point.manifest["level"] in ("memory", "paused"), point.manifest["reason"]
    assert memory["file"] == "memory.pages", memory["why_plain"]


def vault_files(lab: Lab) -> list[str]:
    """All that lies in the vault but its mark, hidden names too."""
    return lab.run(f"find {VAULT} -mindepth 1 ! -name .zvmsnap-vault | sort").stdout.splitlines()


def disks(lab: Lab, domain: str, *, persistent: bool = False) -> dict[str, str]:
    """Where a guest's disks are, in its live or its persistent definition."""
    root = ET.fromstring(dumpxml(lab, domain, persistent=persistent))
    found = {}
    for disk in root.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            found[target.get("dev", "")] = source.get("file") or source.get("dev") or ""
    return found


def dumpxml(lab: Lab, domain: str, *, persistent: bool = False) -> str:
    """A guest's definition."""
    inactive = "--inactive" if persistent else ""
    return lab.run(f"virsh dumpxml {inactive} {quote(domain)}").stdout


def state(lab: Lab, domain: str) -> str:
    """`running`, `paused`, `shut off`."""
    return lab.run(f"virsh domstate {quote(domain)}").stdout.strip()


def leftovers(lab: Lab) -> list[str]:
    """What a finished moment must not leave: files in staging or journal, libvirt's metadata."""
    return lab.run(
        f"find {STAGING} {JOURNAL} -mindepth 1 {LASTING} {NOT_UNDER_WAY} 2>/dev/null;"
        "for guest in $(virsh list --all --uuid); do virsh snapshot-list --name $guest; done"
    ).stdout.split()


def assert_on_base(lab: Lab, domain: str, expected: Mapping[str, str]) -> None:
    """The guest is on its bases, in its live and in its persistent definition."""
    for persistent in (False, True):
        assert disks(lab, domain, persistent=persistent) == expected
        assert ".zvmsnap." not in dumpxml(lab, domain, persistent=persistent)


def assert_at_rest(lab: Lab, guest: Guest = WEB) -> None:
    """The guest is on its bases, and nothing is left of any moment under way."""
    assert_on_base(lab, guest.name, guest.disks)
    assert leftovers(lab) == []


# -- what the guest saw


@dataclass
class Watch:
    """What was seen of a guest from outside: how its log grew, and its pauses."""

    growth_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    @property
    def longest_silence_s(self) -> float:
        """The longest time in which it printed nothing."""
        return self._silences_s[-1]

    @property
    def usual_silence_s(self) -> float:
        """The longest one but for that: how slowly it prints when nothing holds it."""
        return self._silences_s[-2]

    @property
    def _silences_s(self) -> list[float]:
        return sorted(b - a for a, b in zip(self.growth_s, self.growth_s[1:], strict=False))


@contextmanager
def watched(lab: Lab, domain: str) -> Iterator[Watch]:
    """Watch a guest from outside, in the lab's own time; read the Watch afterwards."""
    sampler = (
        "import os, sys, time\n"
        "last = -1\n"
        "while True:\n"
        "    size = os.stat(sys.argv[1]).st_size\n"
        "    if size != last:\n"
        "        print(time.monotonic(), flush=True)\n"
        "        last = size\n"
        f"    time.sleep({_SAMPLE_EVERY_S})\n"
    )
    lab.put("/root/sampler.py", sampler)
    begin = (
        f"nohup python3 /root/sampler.py {guests.SERIAL_DIR}/{domain}.log > /root/growth "
        "2>&1 < /dev/null & echo $!; "
        f"nohup virsh event {domain} --event lifecycle --loop --timestamp > /root/events "
        "2>&1 < /dev/null & echo $!"
    )
    pids = lab.run(begin).stdout.split()
    lab.run("until test -s /root/growth; do sleep 0.1; done")
    watch = Watch()
    try:
        yield watch
    finally:
        lab.run(f"kill {' '.join(pids)}", check=False)
    watch.growth_s = [float(line) for line in lab.get("/root/growth").decode().splitlines()]
    watch.pauses_s = _pauses_s(lab.get("/root/events").decode())


def _pauses_s(events: str) -> list[float]:
    pauses, since = [], None
    for line in events.splitlines():
        stamp, found, what = line.partition(": event ")
        if not found:
            continue
        now = datetime.fromisoformat(stamp)
        if "Suspended" in what:
            since = now
        elif "Resumed" in what and since is not None:
            pauses.append((now - since).total_seconds())
            since = None
    return pauses


def assert_counted_through(lab: Lab, domain: str) -> None:
    """The guest booted once, and has counted from then on without a gap or a mismatch."""
    counts = guests.counts(lab, domain)
    assert counts == list(range(1, counts[-1] + 1))
    assert guests.boots(lab, domain) == 1
    assert guests.mismatches(lab, domain) == []


def loadable(lab: Lab, domain: str, image: str) -> str:
    """The path of an image that libvirt can load: of a page image, what is exported."""
    path = PurePosixPath(image)
    if path.name != "memory.pages":
        return image
    lab.run(
        f"rm -f {EXPORTED} &&"
        f"zvmsnap export-memory {quote(f'{domain}@{path.parent.name}')} {EXPORTED}",
        timeout_s=ROUND_LIMIT_S,
    )
    return EXPORTED


def assert_coherent(lab: Lab, guest: Guest, name: str, image: str) -> None:
    """The proof: disks back to the snapshot `name`, RAM back from `image`, and it counts on.

    `image` is the path of a point's RAM image, or of one that libvirt can load.
    """
    image = loadable(lab, guest.name, image)
    last = guests.counts(lab, guest.name)[-1]
    lab.run(f"virsh destroy {guest.name}")
    for dataset in guest.datasets:
        lab.run(f"zfs rollback -r {dataset}@{name}")
    on_disk = [guests.disk_count(lab, path) for path in guest.disks.values()]
    assert max(on_disk) - min(on_disk) in (0, 1)
    assert max(on_disk) < last
    since = guests.serial_size_bytes(lab, guest.name)
    lab.run(f"virsh restore {quote(image)}")
    guests.wait_counts(lab, guest.name, max(on_disk) + PROOF_COUNTS, since_byte=since)
    counts = guests.counts(lab, guest.name, since)
    # Frozen after it wrote a count and before it printed it, a guest prints it first of all.
    assert counts[0] - max(on_disk) in (0, 1)
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert guests.boots(lab, guest.name, since) == 0
    assert guests.mismatches(lab, guest.name, since) == []


@dataclass(frozen=True)
class Running:
    """A command under way in the lab, in a process group of its own that `pid` leads."""

    pid: int
    process: subprocess.Popen[str]

    def wait(self) -> str:
        """Wait until it, and all that it left behind, has ended; return what stderr got."""
        _, stderr = self.process.communicate(timeout=ROUND_LIMIT_S)
        return stderr


@contextmanager
def running(lab: Lab, command: str) -> Iterator[Running]:
    """Run a command; whatever is left of it afterwards is killed."""
    process = lab.start(f"exec setsid --wait sh -c 'echo $$; exec \"$@\"' sh {command}")
    assert process.stdout
    pid = int(process.stdout.readline())
    try:
        yield Running(pid, process)
    finally:
        lab.run(f"kill -KILL -- -{pid}", check=False)
        process.wait(ROUND_LIMIT_S)


def wait_until(what: str, done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until `done`; fail saying `what` was waited for."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s for: {what}"
        time.sleep(0.2)


def counts_on(lab: Lab, domain: str = "web") -> None:
    """The guest still counts, without a mismatch."""
    guests.wait_counts(lab, domain, guests.counts(lab, domain)[-1] + 3)
