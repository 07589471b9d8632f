"""An instance: a directory with one lab's disks, sockets and logs, and its QEMU."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from labkit import agent, command, hostlock, machine, settings, states
from labkit.agent import Agent
from labkit.errors import LabError
from labkit.image import Image
from labkit.machine import Process
from labkit.qmp import Qmp
from labkit.shell import Shell
from labkit.states import OwnStates, State

_UNLIMITED_BYTES_PER_S = 1 << 40


@dataclass(frozen=True)
class Running:
    """What is known of an instance's QEMU, kept in a file between commands."""

    image: str
    state: str
    pid: int
    started: str
    ssh_port: int
    agent_port: int = 0

    @property
    def process(self) -> Process:
        """The QEMU."""
        return Process(self.pid, self.started)


class Instance:
    """One lab of its own."""

    def __init__(self, name: str) -> None:
        """Name an instance; nothing is started."""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise LabError(f"an instance's name has letters, digits, - and _, not {name!r}")
        self.name = name
        self.directory = settings.cache_dir() / "instances" / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.own_states = OwnStates(self.directory / "states")
        self._note = self.directory / "running.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from starting, resetting or stopping this instance."""
        with hostlock.exclusive(f"instance-{self.name}"):
            yield

    def running(self) -> Running | None:
        """What runs, if anything does."""
        try:
            note = Running(**json.loads(self._note.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return note if note.process.alive() else None

    def shell(self) -> Shell:
        """ssh to the running lab."""
        note = self.running()
        if note is None:
            raise self.why_dead() or LabError(
                f"the lab is not running (instance {self.name}); start it with lab up")
        image = Image(settings.cache_dir() / note.image)
        inside = Agent(image, note.agent_port) if note.agent_port else None
        return Shell(self.directory, image, note.ssh_port, inside, self.why_dead)

    def why_dead(self) -> LabError | None:
        """Why the lab is of no use any more, if it was started and nobody stopped it since."""
        if not self._note.exists():
            return None
        if self.running() is None or machine.crash(self.directory):
            return machine.why_dead(self.directory)
        return None

    def down(self) -> None:
        """Stop the lab at once. Its disks stay until the next reset."""
        if self.running() is not None:
            self.shell().disconnect()
            self._kill()
        self._note.unlink(missing_ok=True)

    def _kill(self) -> None:
        note = self.running()
        if note is not None:
            note.process.kill()

    def boot_blank(self, image: Image) -> None:
        """Boot the image on fresh disks."""
        self.down()
        self._clear()
        states.blank_disks(self.directory, image)
        self._start(image, None, load=False)

    def reset(self, image: Image, state: State) -> None:
        """Go on from a state, as if nothing had happened since."""
        self.down()
        self._clear()
        states.disks_on(state, self.directory)
        self._start(image, state, load=True)

    def power_cut(self) -> None:
        """Kill the lab in mid-air and boot it again from the disks it left."""
        note = self.running()
        if note is None:
            raise LabError("the lab is not running")
        image = Image(settings.cache_dir() / note.image)
        state = self._state(image, note.state)
        shell = self.shell()
        self._kill()
        shell.disconnect()
        self._start(image, state, load=False)

    def save(self, target: Path) -> State:
        """Freeze the running lab into a state. The instance is down afterwards."""
        note = self.running()
        if note is None:
            raise LabError("the lab is not running")
        shell = self.shell()
        # What is cached is not worth saving, and what is deleted even less.
        shell.run("sync; zpool sync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches; "
                  "fstrim / 2>/dev/null; sleep 1; sync", timeout_s=300)
        shell.disconnect()
        draft = states.unfinished(target)
        try:
            with Qmp(self.directory / "qmp") as qmp:
                qmp.execute("stop")
                qmp.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED_BYTES_PER_S})
                # Through cat: of the ways to a file, every QEMU since 7.2 has this one.
                qmp.execute("migrate", {"uri": f"exec:cat > {quote(str(draft / 'stream'))}"})
                qmp.until_migrated(settings.LOAD_TIMEOUT_S)
            self._kill()
            parent = self._state(Image(settings.cache_dir() / note.image), note.state)
            return states.publish(draft, target, self.directory, note.image, parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def remove(self) -> None:
        """Stop the lab and forget everything of it."""
        self.down()
        shutil.rmtree(self.directory)

    def state_path(self, image: Image, name: str) -> Path:
        """Where a state of that full name lies: with the image, or with this instance."""
        if "@" in name:
            return states.stage_of(image, name)
        return (self.directory / "states" if "~" in name else image.states) / name

    def _state(self, image: Image, name: str) -> State | None:
        return State(self.state_path(image, name)) if name else None

    def _clear(self) -> None:
        for disk in settings.DISKS:
            (self.directory / f"{disk}.qcow2").unlink(missing_ok=True)
        for log in ("console.log", "qemu.log"):
            (self.directory / log).unlink(missing_ok=True)

    def _start(self, image: Image, state: State | None, *, load: bool) -> None:
        lineage = state.lineage() if state else []
        stages = {states.stage_of(image, name).parent.name for name in lineage if "@" in name}
        used = [image.directory.name, *lineage, *stages]
        marks = [hostlock.in_use(name) for name in used]
        try:
            process, port = machine.start(
                self.directory, image, stream=state.stream if state and load else None,
                inherit=marks)
        finally:
            for mark in marks:
                os.close(mark)
        # There is an agent in each stage.
        agent_port = machine.free_port() if stages else 0
        note = Running(image.directory.name, state.directory.name if state else "", process.pid,
                       process.started, port, agent_port)
        self._note.write_text(json.dumps(asdict(note)))
        try:
            with Qmp(self.directory / "qmp") as qmp:
                if agent_port:
                    # Not an argument of QEMU's, of which the keys of all states are made.
                    qmp.forward(agent_port, agent.PORT)
                if load:
                    qmp.until_loaded(settings.LOAD_TIMEOUT_S)
                    qmp.execute("cont")
            timeout_s = settings.LOAD_TIMEOUT_S if load else settings.BOOT_TIMEOUT_S
            self.shell().connect(timeout_s)
        except LabError as exc:
            raise self.why_dead() or exc from None

    def console(self) -> str:
        """The last lines of the lab's console."""
        return command.tail(self.directory / "console.log", 60)
