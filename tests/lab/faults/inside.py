"""Runs inside the lab, fed to `python3 - COMMAND ...`: one call does what else took many.

    arm ROW             start a round of sanoid, and hold it at that step
    hurt FAULT ROUTE    do the fault, let go, wait until sanoid has ended, recover, tell everything
    strike SEED NUMBER  kill somebody at some time of a round, as the seed says; tell the rest
    finale              one more round, and load each RAM image
    before              tell what there is, ahead of a power cut
    after BEFORE        tell everything, after the boot that followed it

Nothing is judged here. The last line of stdout is the story as JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt

GUEST = "web"
DATASETS = ("tank/vm/web", "tank/vm/web/data")
DISKS = ("/tank/vm/web/disk0.raw", "/dev/zvol/tank/vm/web/data")
SERIAL = Path("/var/lib/libvirt/serial/web.log")
VAULT = Path("/cheap/vault")
VAULT_DATASET = "cheap/vault"
STAGING = Path("/var/lib/zvmsnap/staging")
JOURNAL = Path("/var/lib/zvmsnap/journal")
LOCKS = Path("/run/zvmsnap")

ARMED = Path("/root/armed.json")
ROUND_LOG = Path("/root/round.log")
BIN = "/root/bin"  # with a zfs that refuses snapshots on demand
REFUSE = Path("/root/refuse-snapshots")
FILLER = STAGING / "filler"

HOOKS = ("pre-snapshot", "post-snapshot")
IOHELPER = "libvirt_iohelpe"  # the kernel keeps 15 characters
UNDER_WAY = "dump under way"
OVERLAY_MADE = "overlay made"
OVERLAY_OPENED = "overlay opened"
HELD_WITHOUT_STEP = (UNDER_WAY, OVERLAY_MADE, OVERLAY_OPENED)
VICTIMS = ("libvirtd", "qemu", "sanoid", "hook", "watchdog")
STRIKE_WITHIN_S = 20.0

ROUND_LIMIT_S = 240.0
RECOVERY_LIMIT_S = 100.0
STEP_LIMIT_S = 120.0
COUNT_LIMIT_S = 90.0
PROOF_COUNTS = 5

Story = dict[str, Any]
BEGUN_S = time.monotonic()


# -- the machine


def run(*words: str, timeout_s: float = STEP_LIMIT_S) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(words, -1, "", f"no end after {error.timeout:.0f} s")


def must(*words: str) -> str:
    done = run(*words)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def wait(what: str, done: Callable[[], Any], limit_s: float, every_s: float = 0.1) -> Any:
    deadline_s = time.monotonic() + limit_s
    while not (found := done()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(every_s)
    return found


def processes() -> dict[int, tuple[str, str, str]]:
    """Name, state and start of every process."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            name, _, rest = (directory / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            found[int(directory.name)] = (name, fields[0], fields[19])
    return found


def named(names: Iterable[str]) -> dict[int, str]:
    """Pid and state of the processes of these names."""
    return {pid: state for pid, (name, state, _) in processes().items() if name in names}


def ram_writers() -> list[int]:
    """What libvirtd started to write a RAM image: a small guest's is over sooner than all of /proc
    can be read."""
    found = []
    for children in Path("/proc", libvirtd_pid(), "task").glob("*/children"):
        with suppress(OSError):
            for pid in children.read_text().split():
                if Path("/proc", pid, "comm").read_text().strip() == IOHELPER:
                    found.append(int(pid))
    return found


def libvirtd_pid() -> str:
    return Path("/run/libvirtd.pid").read_text().strip()


def runs(pid: int, started: str) -> bool:
    _, state, since = processes().get(pid, ("", "Z", ""))
    return state not in "ZX" and since == started


def send(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def mark(story: Story, what: str) -> None:
    """How long it took so far."""
    story.setdefault("times", {})[what] = round(time.monotonic() - BEGUN_S, 1)


def pass_an_hour() -> None:
    """Also past the newest snapshot, for a boot sets the clock to the host's."""
    taken = must("zfs", "list", "-Hp", "-t", "snapshot", "-o", "creation").split()
    now_s = max([time.time(), *map(float, taken)])
    must("date", "-s", f"@{now_s + 3600:.0f}")


# -- what there is


def domain() -> Any:
    """The guest, by a connection of its own: libvirtd may have been restarted."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt.open("qemu:///system").lookupByName(GUEST)


def definition(flags: int = 0) -> str:
    try:
        return str(domain().XMLDesc(flags))
    except libvirt.libvirtError:
        return ""


def domain_state() -> str:
    states = {
        libvirt.VIR_DOMAIN_RUNNING: "running",
        libvirt.VIR_DOMAIN_PAUSED: "paused",
        libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    }
    state, reason = domain().state()
    return states.get(state, f"in state {state}, reason {reason}")


def journal_entries() -> list[str]:
    lasting = ("vault.id", "seal.key", "failures.count")
    names = (path.name for path in JOURNAL.glob("*") if path.is_file() or any(path.iterdir()))
    return sorted(name for name in names if name not in lasting)


def guards() -> list[str]:
    return [path.name for path in Path("/sys/fs/cgroup/system.slice").glob("zvmsnap-watchdog-*")]


def held_locks() -> list[str]:
    held = []
    for path in LOCKS.glob("*.lock"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(f"{path}: {path.read_text()}")
    return held


def below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def observe() -> Story:
    guest = domain()
    active = guest.isActive()
    return {
        "state": domain_state(),
        "live": definition(),
        "persistent": definition(libvirt.VIR_DOMAIN_XML_INACTIVE),
        "job": active and guest.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE,
        "allowed_pause_ms": guest.migrateGetMaxDowntime(0) if active else None,
        "metadata": [snapshot.getName() for snapshot in guest.listAllSnapshots()],
        "staging": below(STAGING),
        "journal": journal_entries(),
        "vault": below(VAULT),
        "held": held_locks(),
        "guards": guards(),
        "processes": sorted(name for name, _, _ in processes().values()
                            if name in (*HOOKS, IOHELPER, "sanoid")),
        "zfs": zfs(),
    }


def zfs() -> dict[str, str]:
    """All that the pools hold, with guids."""
    listed = must("zfs", "list", "-Hp", "-t", "all", "-o", "name,guid")
    return dict(line.split("\t") for line in listed.splitlines())


def serial(since: int = 0) -> Story:
    """What the guest has printed."""
    text = SERIAL.read_bytes()[since:].decode(errors="replace") if SERIAL.exists() else ""
    # Before a line may stand what the guest had printed of another one when it was ended.
    counts = [int(line, 16) for line in re.findall(r"(?<! )([0-9a-f]{8})\n", text)]
    return {
        "bytes": since + len(text),
        "first": counts[0] if counts else None,
        "last": counts[-1] if counts else None,
        "gaps": [(a, b) for a, b in itertools.pairwise(counts) if b != a + 1],
        "boots": len(re.findall(r"B\n", text)),
        "mismatches": re.findall(r"[!E][0-9a-f]{2} [0-9a-f]{8} [0-9a-f]{8}\n", text),
    }


def counted(many: int, since: int) -> bool:
    """Does it print as many counts from there on?"""

    def enough() -> bool:
        seen = serial(since)
        return bool(seen["mismatches"]) or (seen["last"] is not None and (
            seen["last"] - seen["first"] >= many
        ))

    try:
        wait("counts", enough, COUNT_LIMIT_S)
    except TimeoutError:
        return False
    return not serial(since)["mismatches"]


def disk_counts() -> list[int]:
    """The last count on each base."""
    found = []
    for path in DISKS:
        with open(path, "rb") as disk:
            sectors = disk.read(3 * 512)[512:]
        seen = [struct.unpack_from("<i4s", sectors, at) for at in (0, 512)]
        found.append(max(count for count, magic in seen if magic == b"ZVMC"))
    return found


def points() -> list[Story]:
    """The manifests in the vault, each with its directory."""
    return [
        json.loads(path.read_text()) | {"directory": str(path.parent)}
        for path in sorted(VAULT.glob("*/[!.]*/manifest.json"))
    ]


# -- the round


def ram_is_written() -> bool:
    """Has libvirt written a RAM image whole? After that it labels the overlays, one by one."""
    for image in STAGING.glob("*-*/point/memory.img"):
        with open(image, "rb") as file:
            return file.read(16) == b"LibvirtQemudSave"
    return False


def arm(row: str) -> Story:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    if row not in HELD_WITHOUT_STEP:
        environment["ZVMSNAP_TEST_STOP_BEFORE"] = row
    sanoid = start_sanoid(environment)

    def stopped() -> list[int]:
        if sanoid.poll() is not None:
            raise RuntimeError(f"sanoid ended before {row}: {ROUND_LOG.read_text()}")
        if row == UNDER_WAY:
            pids = ram_writers()
            send(signal.SIGSTOP, pids)
            return pids
        if row in (OVERLAY_MADE, OVERLAY_OPENED):
            opened = len(DISKS) - 1 if row == OVERLAY_OPENED else 0
            if not ram_is_written() or len(overlays_in_qemu()) != opened:
                return []
            send(signal.SIGSTOP, [int(libvirtd_pid())])
            return [int(libvirtd_pid())]
        return [pid for pid, state in named(HOOKS).items() if state == "T"]

    held = wait(f"the hook at {row}", stopped, ROUND_LIMIT_S, every_s=0.02)
    (hook,) = named(HOOKS)
    started = processes()[sanoid.pid][2]
    armed = {"row": row, "sanoid": sanoid.pid, "started": started, "hook": hook, "held": held}
    ARMED.write_text(json.dumps(armed))
    return armed


def start_sanoid(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with ROUND_LOG.open("w") as log:
        return subprocess.Popen(
            ["sanoid", "--take-snapshots", "--verbose"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )


def before() -> Story:
    """What there is while the round is held."""
    armed = json.loads(ARMED.read_text())
    libvirtd_is_stopped = armed["row"] in (OVERLAY_MADE, OVERLAY_OPENED)
    entries = [json.loads(path.read_text()) for path in JOURNAL.glob("*-*.json")]
    return {
        "armed": armed,
        "step": [entry["step"] for entry in entries],
        "moments": [entry["run"] for entry in entries],
        # A libvirtd that is stopped answers nobody.
        "on_overlay": not libvirtd_is_stopped and ".zvmsnap.qcow2" in definition(),
        "qemu_has": overlays_in_qemu(),
        "zfs": zfs(),
        "points": [point["directory"] for point in points()],
        "serial": serial(),
    }


def let_go(armed: Story) -> None:
    """Go on until sanoid and its hooks have ended; a hook may come to that step again."""

    def over() -> bool:
        send(signal.SIGCONT, [*named(HOOKS), *named([IOHELPER]), *armed["held"]])
        return not runs(armed["sanoid"], armed["started"]) and not named(HOOKS)

    wait("sanoid and its hooks to end", over, ROUND_LIMIT_S)


# -- faults: each does its worst and returns what makes it good again, as an administrator would


def qemu() -> int:
    return int(Path(f"/run/libvirt/qemu/{GUEST}.pid").read_text())


def overlays_in_qemu() -> list[str]:
    """The overlays that it has open, whatever libvirt knows of them."""
    found = set()
    for descriptor in Path(f"/proc/{qemu()}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(descriptor))
    return sorted(path for path in found if ".zvmsnap.qcow2" in path)


def end_qemu(number: int) -> None:
    pid = qemu()
    os.kill(pid, number)
    # One that writes its RAM into a pipe that nobody empties ends later.
    with suppress(TimeoutError):
        wait("QEMU's end", lambda: not Path(f"/proc/{pid}").exists(), 3)


def restart_libvirtd(*words: str) -> None:
    def pid() -> str:
        return must("systemctl", "show", "-P", "MainPID", "libvirtd").strip()

    old = pid()
    must("systemctl", *words, "libvirtd")
    # A dump that is held up holds up libvirtd's end, too.
    with suppress(TimeoutError):
        wait("the old libvirtd's end", lambda: pid() != old, 3)


def start_libvirtd() -> None:
    run("systemctl", "reset-failed", "libvirtd")
    wait("libvirtd", lambda: run("systemctl", "start", "libvirtd").returncode == 0, 60)
    wait("libvirtd", definition, 60)


def fill_staging() -> None:
    with FILLER.open("wb") as filler:
        for chunk_bytes in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
            with suppress(OSError):
                while True:
                    at = filler.seek(0, os.SEEK_END)
                    os.posix_fallocate(filler.fileno(), at, chunk_bytes)


def fill_vault() -> None:
    must("zpool", "sync")
    used = int(must("zfs", "get", "-Hpo", "value", "used", VAULT_DATASET))
    must("zfs", "set", f"quota={used + 65536}", VAULT_DATASET)


def mount_vault() -> None:
    must("zfs", "mount", VAULT_DATASET)


def nothing() -> None:
    pass


Heal = Callable[[], Any]
FAULTS: dict[str, tuple[Callable[[Story], Any], Heal]] = {
    "hook KILL": (lambda armed: send(signal.SIGKILL, [armed["hook"]]), nothing),
    "sanoid KILL": (lambda armed: send(signal.SIGKILL, [armed["sanoid"]]), nothing),
    "hook TERM": (lambda armed: send(signal.SIGTERM, [armed["hook"]]), nothing),
    "guest destroyed": (lambda _: must("virsh", "destroy", GUEST), nothing),
    "guest shut off": (lambda _: end_qemu(signal.SIGTERM), nothing),
    "qemu KILL": (lambda _: end_qemu(signal.SIGKILL), nothing),
    "libvirtd TERM": (lambda _: restart_libvirtd("--no-block", "restart"), start_libvirtd),
    "libvirtd KILL": (lambda _: restart_libvirtd("kill", "-s", "KILL"), start_libvirtd),
    "staging full": (lambda _: fill_staging(), lambda: FILLER.unlink()),
    "vault full": (lambda _: fill_vault(), lambda: must("zfs", "set", "quota=none", VAULT_DATASET)),
    "vault not mounted": (lambda _: must("zfs", "unmount", "-f", VAULT_DATASET), mount_vault),
    "snapshot refused": (lambda _: REFUSE.touch(), lambda: REFUSE.unlink()),
}


# -- recovery


def at_rest() -> bool:
    if journal_entries() or guards():
        return False
    live = definition()
    return bool(live) and ".zvmsnap.qcow2" not in live


def sanoid_again() -> Story:
    pass_an_hour()
    done = run("sanoid", "--take-snapshots", "--verbose", timeout_s=ROUND_LIMIT_S)
    return {"returncode": done.returncode, "said": done.stdout + done.stderr}


def recover(route: str, story: Story) -> None:
    begun_s = time.monotonic()
    if route == "recover":
        done = run("/usr/local/bin/zvmsnap", "recover", timeout_s=ROUND_LIMIT_S)
        story["recover"] = {"returncode": done.returncode, "said": done.stdout + done.stderr}
    elif route == "next run":
        story["next"] = sanoid_again()
    elif route == "boot":
        story["boot"] = wait("zvmsnap-recover.service", after_boot, RECOVERY_LIMIT_S, every_s=0.5)
    with suppress(TimeoutError):
        wait("rest", at_rest, RECOVERY_LIMIT_S if route == "guard" else 10, every_s=0.2)
    story["recovery_s"] = time.monotonic() - begun_s


def after_boot() -> Story | None:
    asked = ("ActiveState", "Result", "ExecMainExitTimestampMonotonic", "ExecMainStatus")
    said = must("systemctl", "show", "-p", ",".join(asked), "zvmsnap-recover.service")
    unit = dict(line.split("=", 1) for line in said.splitlines())
    begun = unit["ActiveState"] in ("activating", "active", "reloading")
    if begun or unit["ExecMainExitTimestampMonotonic"] == "0":
        return None
    return {**unit, "uptime_s": time.monotonic()}


# -- afterwards


def back_to_work(story: Story, begun: int = 0) -> None:
    """A guest that is off is started, after its disks were looked at."""
    story["was_off"] = story["rest"]["state"] == "shut off"
    since = serial()["bytes"]
    if story["was_off"]:
        story["died"] = serial(begun)
        story["disk_counts"] = disk_counts()
        done = run("virsh", "start", GUEST)
        story["start"] = done.stdout + done.stderr
    story["counts_on"] = counted(2, since)
    story["serial"] = serial(since if story["was_off"] else begun)


def load_all(there_before: Collection[str]) -> list[Story]:
    """Back to each point that has RAM, newest first, as a rollback destroys what is newer.

    A point that was there before need not be loaded: it is enough that its image is the same.
    """
    found = [point for point in points() if point["memory"]]
    found.sort(key=lambda point: max(tie["createtxg"] for tie in point["snapshots"]), reverse=True)
    return [
        {"directory": point["directory"], "same": is_whole(point)}
        if point["directory"] in there_before
        else load(point)
        for point in found
    ]


def is_whole(point: Story) -> bool:
    memory, directory = point["memory"], Path(point["directory"])
    if not memory.get("rest_file"):
        image = (directory / memory["file"]).read_bytes()
        return bool(hashlib.sha256(image).hexdigest() == memory["sha256"])
    rest = hashlib.sha256((directory / memory["rest_file"]).read_bytes()).hexdigest()
    return (digest_of_pages(directory / memory["file"]), rest) == (
        memory["sha256"], memory["rest_sha256"],
    )


def digest_of_pages(file: Path) -> str:
    """As docs/reference/page-images.md has it."""
    digest = hashlib.sha256()
    with file.open("rb") as pages:
        place = 0
        while record := pages.read(16384):
            if any(record):
                own = hashlib.sha256(place.to_bytes(8, "big") + record).digest()
                digest.update(place.to_bytes(8, "big") + own)
            place += len(record)
    return digest.hexdigest()


def load(point: Story) -> Story:
    told: Story = {"directory": point["directory"]}
    there = zfs()
    names = [
        tie["name"] for tie in point["snapshots"]
        if all(f"{dataset}@{tie['name']}" in there for dataset in DATASETS)
    ]
    run("virsh", "destroy", GUEST)
    try:
        for dataset in DATASETS:
            must("zfs", "rollback", "-r", f"{dataset}@{names[0]}")
        # udev looks at a volume that was closed; what it read must not hide the rollback from us.
        must("udevadm", "settle")
        must("blockdev", "--flushbufs", DISKS[1])
        told["disk_counts"] = disk_counts()
        since = serial()["bytes"]
        image = Path(point["directory"], point["memory"]["file"])
        if image.name != "memory.img":
            image = Path("/root/memory.img")
            image.unlink(missing_ok=True)
            name = f"{GUEST}@{Path(point['directory']).name}"
            must("/usr/local/bin/zvmsnap", "export-memory", name, str(image))
        must("virsh", "restore", str(image))
        counted(PROOF_COUNTS, since)
        told["serial"] = serial(since)
    except Exception:
        told["error"] = traceback.format_exc(limit=3)
    return told


def aftermath(route: str, story: Story) -> None:
    recover(route, story)
    mark(story, "recovered")
    story["rest"] = observe()
    story["points"] = points()
    back_to_work(story)
    mark(story, "counted")
    if route != "next run" or story["was_off"]:
        story["next"] = sanoid_again()
    with suppress(TimeoutError):  # the new guard may need a second to see that sanoid is gone
        wait("rest", at_rest, 20, every_s=0.2)
    story["end"] = observe()
    story["end_points"] = points()
    story["end_serial"] = serial()
    mark(story, "run again")
    story["loads"] = load_all(story["before"]["points"])
    mark(story, "loaded")


def hurt(fault: str, route: str, story: Story) -> None:
    story["before"] = before()
    armed = story["before"]["armed"]
    do, heal = FAULTS[fault]
    if route != "guard":
        run("systemctl", "stop", "zvmsnap-watchdog*")  # one that is killed is started again
        wait("the guard's end", lambda: not guards(), 30)
    mark(story, "ready")
    do(armed)
    mark(story, "done")
    let_go(armed)
    mark(story, "ended")
    if fault == "vault not mounted":
        story["below_mountpoint"] = below(VAULT)
    heal()
    story["round"] = ROUND_LOG.read_text()
    aftermath(route, story)


# -- kills at any time


def strike(seed: str, number: str, story: Story) -> None:
    """Kill somebody at some time of a round; then nobody does anything but start libvirtd."""
    dice = random.Random(f"{seed}/{number}")
    victim, after_s = dice.choice(VICTIMS), dice.uniform(0, STRIKE_WITHIN_S)
    pass_an_hour()
    begun = serial()["bytes"]
    sanoid = start_sanoid(dict(os.environ))
    armed = {"sanoid": sanoid.pid, "started": processes()[sanoid.pid][2], "held": []}
    story |= {"victim": victim, "after_s": round(after_s, 1), "points_before": len(points())}
    time.sleep(after_s)
    while not (pids := victims(victim, sanoid)) and sanoid.poll() is None:
        time.sleep(0.02)
    story["steps"] = []
    for path in JOURNAL.glob("*-*.json"):
        with suppress(OSError):  # it may be closed just now
            story["steps"].append(json.loads(path.read_text())["step"])
    story["killed"] = len(pids)
    send(signal.SIGKILL, pids)
    let_go(armed)
    sanoid.wait(ROUND_LIMIT_S)
    start_libvirtd()
    story["round"] = ROUND_LOG.read_text()
    recover("guard", story)
    story["rest"] = observe()
    back_to_work(story, begun)
    new = points()[story["points_before"]:]
    story["levels"] = [(point["level"], point["reason"]) for point in new]


def victims(which: str, sanoid: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a victim that run now."""
    if which == "watchdog":
        units = [f"{Path('/sys/fs/cgroup/system.slice', name)}/cgroup.procs" for name in guards()]
        return [int(pid) for unit in units for pid in Path(unit).read_text().split()]
    if which == "hook":
        return [*named(HOOKS)]
    if which == "sanoid":
        return [] if sanoid.poll() is not None else [sanoid.pid]
    return [qemu() if which == "qemu" else int(libvirtd_pid())]


def finale(story: Story) -> None:
    story["next"] = sanoid_again()
    with suppress(TimeoutError):
        wait("rest", at_rest, 20, every_s=0.2)
    story["end"] = observe()
    story["end_points"] = points()
    story["loads"] = load_all([])


def main(command: str, *words: str) -> None:
    story: Story = {}
    try:
        if command == "arm":
            story |= arm(*words)
        elif command == "before":
            story |= before()
        elif command == "hurt":
            fault, route = words
            hurt(fault, route, story)
        elif command == "strike":
            seed, number = words
            strike(seed, number, story)
        elif command == "finale":
            finale(story)
        else:
            story["before"] = json.loads(*words)
            aftermath("boot", story)
    except Exception:
        story["broken"] = traceback.format_exc()
    print(json.dumps(story))


if __name__ == "__main__":
    main(*sys.argv[1:])
