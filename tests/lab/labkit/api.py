"""The lab as tests and the command line see it."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from labkit import agent, guests, hostlock, machine, progress, recipes, settings, states, version
from labkit import image as images
from labkit.errors import LabError
from labkit.instance import Instance
from labkit.shell import Completed, Shell
from labkit.states import State

__all__ = ["Completed", "Lab", "LabError", "guests"]

CODE_DIR = "/opt/zvmsnap"


class Lab:
    """One instance of the lab."""

    def __init__(self, name: str | None = None) -> None:
        """Take the instance of that name, else the one ZVMSNAP_LAB_INSTANCE names."""
        self.instance = Instance(name or settings.instance_name())
        self._shell: Shell | None = None
        self._kept: dict[str, int] = {}

    # -- coming and going

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from changing this instance; waits for those that do."""
        with self.instance.alone():
            yield

    def up(self, state: str = "ready") -> None:
        """Run the lab; if it does not run yet, from that state."""
        if self.instance.running() is None:
            self.reset(state)

    def reset(self, state: str = "guests") -> None:
        """Run the lab from a state, whatever it did before. The time is the state's, too."""
        image = images.image()
        with self._found(image, state) as found, progress.step(f"loading state {state}"):
            self._shell = None
            self.instance.reset(image, found)

    def down(self) -> None:
        """Stop the lab."""
        self._shell = None
        self.instance.down()

    def save(self, state: str) -> None:
        """Freeze the lab as a state of this instance, and go on from it."""
        if state in recipes.RECIPES or not state.replace("-", "").isalnum():
            raise LabError(f"a state cannot be saved as {state!r}; take another name, "
                           "of letters, digits and -")
        image = images.image()
        with progress.step(f"saving state {state}"):
            saved = self.instance.save(self.instance.own_states.next_path(state))
            self._shell = None
            self.instance.reset(image, saved)
        self.instance.own_states.tidy(saved)

    def powercut(self) -> None:
        """Cut the power, boot again, wait for ssh."""
        with progress.step("power cut, and booting again"):
            self._shell = None
            self.instance.power_cut()

    def states(self) -> list[str]:
        """Names that `reset` knows."""
        return [*recipes.RECIPES, *self.instance.own_states.names()]

    # -- what tests do with it

    @property
    def shell(self) -> Shell:
        """ssh to it."""
        if self._shell is None:
            self._shell = self.instance.shell()
        return self._shell

    def run(self, command: str, *, check: bool = True, timeout_s: float = 120.0,
            stdin: str | bytes | None = None, env: Mapping[str, str] | None = None) -> Completed:
        """Run a shell command as root. A failure, if checked, shows both streams."""
        return self.shell.run(command, check=check, timeout_s=timeout_s, stdin=stdin, env=env)

    def python(self, code: str, *, timeout_s: float = 120.0) -> str:
        """Run Python code with the synced checkout importable; return what it printed."""
        return self.run("python3 -", stdin=code, timeout_s=timeout_s,
                        env={"PYTHONPATH": CODE_DIR}).stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command and leave it running; its streams are pipes."""
        return self.shell.start(command)

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file, and the directories above it."""
        self.shell.write(path, content.encode() if isinstance(content, str) else content, mode)

    def get(self, path: str) -> bytes:
        """Read a file."""
        return self.shell.read(path)

    def set_clock(self, iso: str) -> None:
        """Set the lab's time, which otherwise is the state's: ISO 8601, UTC unless it says."""
        self.run(f"TZ=UTC date -s {quote(iso)}")

    def sync(self) -> None:
        """Copy the checkout's code into the lab, to /opt/zvmsnap."""
        sources = [f"{settings.CHECKOUT_DIR}/./{path.name}" for path in version.product()]
        if (settings.LAB_DIR / "inside").exists():
            sources.append(f"{settings.LAB_DIR}/./inside")
        if sources:
            self.shell.rsync(sources, f"{CODE_DIR}/")

    # -- making states

    def carry_code(self) -> None:
        """Make it ready to be the first stage of all: with the checkout's code, and the agent."""
        self.sync()
        self.run(f"python3 -m compileall -q {CODE_DIR}")
        agent.install(self, images.image())

    def stage(self, name: str, make: Callable[[], None]) -> None:
        """Run the lab from a stage, which `make` leads this lab to, the first time.

        A stage is a state with the checkout's code in it. All labs have it together, until it is
        of older code; who wants one that another makes just now waits for it.
        """
        image = images.image()
        path = states.stage(image, name)
        marks = [hostlock.in_use(each) for each in (image.key, path.parent.name, path.name)]
        try:
            if not path.exists():
                with hostlock.exclusive(f"make-{path.name}"):
                    if not path.exists():
                        make()
                        with progress.step(f"saving stage {name}"):
                            self._shell = None
                            path.parent.mkdir(exist_ok=True)
                            self.instance.save(path)
            state = State(path)
            # What it lies on must be there for the next time, too.
            for below in state.lineage():
                if below not in self._kept:
                    self._kept[below] = hostlock.in_use(below)
            with progress.step(f"loading stage {name}"):
                self._shell = None
                self.instance.reset(image, state)
        finally:
            for mark in marks:
                os.close(mark)

    @contextmanager
    def _found(self, image: images.Image, name: str) -> Iterator[State]:
        """Find or make a state, and keep it and what it lies on from being removed."""
        own = self.instance.own_states.find(name)
        if own is not None:
            path = own.directory
            if own.image_key != image.key:
                raise LabError(f"state {name} was saved from an older image; save it again")
        elif name in recipes.RECIPES:
            path = image.states / recipes.key(name, machine.fingerprint(image))
        else:
            raise LabError(f"no state {name!r}; there are {', '.join(self.states())}")
        marks = [hostlock.in_use(image.key), hostlock.in_use(path.name)]
        try:
            if not path.exists():
                with hostlock.exclusive(f"make-{path.name}"):
                    if not path.exists():
                        self._make(image, name, path)
            state = State(path)
            marks += [hostlock.in_use(below) for below in state.lineage()]
            if own is None:
                states.remove_older(state)
            elif not all(self.instance.state_path(image, below).exists()
                         for below in state.lineage()):
                raise LabError(f"state {name} lies on one that is gone; save it again")
            yield state
        finally:
            for mark in marks:
                os.close(mark)

    def _make(self, image: images.Image, name: str, path: Path) -> None:
        """Make a named state in an instance of its own, so that ours stays as it is."""
        recipe = recipes.RECIPES[name]
        workshop = Lab(f"{path.name}-making")
        try:
            if recipe.parent:
                with self._found(image, recipe.parent) as parent:
                    workshop.instance.reset(image, parent)
            else:
                with progress.step("booting the image"):
                    workshop.instance.boot_blank(image)
            with progress.step(f"making state {name}"):
                recipe.make(workshop)
                workshop.instance.save(path)
        finally:
            workshop.instance.remove()
