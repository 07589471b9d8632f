"""Calls of libvirt that can be given up, and connections that are lost."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from tests.fakes.clock import until
from tests.fakes.guest import UUID
from tests.fakes.images import libvirt_image
from tests.fakes.libvirt_module import Failure
from zvmsnap.common import waiting
from zvmsnap.common.errors import (
    ConnectionLost,
    DomainGone,
    HypervisorUnreachable,
    LibvirtFailed,
    NoAnswer,
)
from zvmsnap.common.process import is_stopped
from zvmsnap.virt import connection, host, qemu_process
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


class Daemon:
    """libvirtd with one guest, whose QEMU may hang; counts connections and calls."""

    def __init__(self) -> None:
        self.is_up = True
        self.hangs: set[str] = set()
        self.released = threading.Event()
        self.connections: list[Opened] = []
        self.at: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []
        self.is_opening_slow = False

    def open(self, _uri: str) -> "Opened":
        if self.is_opening_slow:
            self.released.wait()
        if not self.is_up:
            raise Failure("Failed to connect socket")
        self.connections.append(Opened(self))
        return self.connections[-1]

    def serve(self, opened: "Opened", call: str) -> None:
        self.calls.append(call)
        self.at.pop(call, lambda: None)()
        if call in self.hangs:
            self.released.wait()
        if not opened.alive:
            raise Failure("client socket is closed")


class Opened:
    """A connection, as libvirt gives it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.alive = True

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.alive

    def listAllDomains(self) -> list["Virdomain"]:  # noqa: N802
        return [Virdomain(self)]

    def lookupByUUIDString(self, uuid: str) -> "Virdomain":  # noqa: N802
        if uuid != UUID:
            raise Failure("no domain", libvirt.VIR_ERR_NO_DOMAIN)
        return Virdomain(self)

    def restoreFlags(self, *_arguments: object) -> None:  # noqa: N802
        self.daemon.serve(self, "restoreFlags")

    def close(self) -> None:
        self.alive = False


class Virdomain:
    """A domain, as libvirt gives it: any method is a call of the daemon."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def name(self) -> str:
        return "web"

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def serve(*_arguments: object) -> Any:
            self._opened.daemon.serve(self._opened, call)
            return 300 if call == "migrateGetMaxDowntime" else (0, 1)

        return serve


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon()
    monkeypatch.setattr(libvirt, "open", daemon.open, raising=False)
    monkeypatch.setattr(libvirt, "registerErrorHandler", lambda *_: None, raising=False)
    monkeypatch.setattr(connection, "_start_event_loop", lambda: None)
    for flag in ("ATOMIC", "NO_METADATA", "LIVE", "DISK_ONLY"):
        name = f"VIR_DOMAIN_SNAPSHOT_CREATE_{flag}"
        monkeypatch.setattr(libvirt, name, 1, raising=False)
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_JOB_NONE", 0, raising=False)
    monkeypatch.setattr(connection, "ANSWER_S", 0.05)
    monkeypatch.setattr(connection, "_ASK_EVERY_S", 0.01)
    monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.01)
    yield daemon
    daemon.released.set()


@pytest.fixture
def web(daemon: Daemon) -> Guest:
    (guest,) = Host.connect("test:///").guests()
    assert (guest.name, guest.uuid) == ("web", UUID)
    return guest


def test_qemu_that_does_not_answer_is_given_up_and_not_asked_again(
    daemon: Daemon, web: Guest
) -> None:
    daemon.hangs = {"migrateGetMaxDowntime"}
    with pytest.raises(NoAnswer, match=r"web: reading its allowed pause: no answer: given up"):
        web.check_answers()
    with pytest.raises(NoAnswer, match=r"web: resuming: its QEMU did not answer before"):
        web.resume()
    assert "resume" not in daemon.calls


def test_qemu_that_is_stopped_is_not_asked(
    daemon: Daemon, web: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While libvirt waits for its answer, it would not show the definition."""
    monkeypatch.setattr(qemu_process, "_PID_FILES", tmp_path)
    words = [sys.executable, "-c", "input()", "-uuid", UUID]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as qemu:
        (tmp_path / "web.pid").write_text(str(qemu.pid))
        web.check_answers()
        qemu.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(qemu.pid))
        daemon.calls.clear()
        with pytest.raises(NoAnswer, match="web: its QEMU is stopped"):
            web.check_answers()
        qemu.kill()
    assert daemon.calls == []


def test_guest_that_cannot_be_asked_now_does_not_hang(daemon: Daemon, web: Guest) -> None:
    def refuse() -> None:
        raise Failure("cannot acquire state change lock", libvirt.VIR_ERR_OPERATION_TIMEOUT)

    daemon.at["migrateGetMaxDowntime"] = refuse
    web.check_answers()


def test_what_libvirt_knows_without_qemu_is_asked_all_the_same(daemon: Daemon, web: Guest) -> None:
    daemon.hangs = {"migrateGetMaxDowntime"}
    with pytest.raises(NoAnswer):
        web.check_answers()
    assert web.xml() == "(0, 1)"
    assert web.state() == "in an unknown state"
    # Through a new connection: the call that was given up keeps its place in the old one.
    assert len(daemon.connections) == 2


def test_definition_that_libvirt_shows_late_is_asked_for_once(
    daemon: Daemon, web: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the call that hangs, 30 s each time."""
    monkeypatch.setattr(connection, "_LOCKED_S", 0.01)
    monkeypatch.setattr(connection, "ANSWER_S", 10)
    daemon.at["XMLDesc"] = partial(time.sleep, 0.05)
    web.xml()
    with pytest.raises(NoAnswer, match="libvirt waits for its QEMU, which does not answer"):
        web.xml()
    assert web.is_active()


def test_other_guests_are_asked(daemon: Daemon, web: Guest) -> None:
    daemon.hangs = {"migrateGetMaxDowntime"}
    with pytest.raises(NoAnswer):
        web.check_answers()
    daemon.hangs = set()
    again = Host.connect("test:///").guest(UUID)
    again.check_answers()
    again.resume()


def test_dump_is_waited_for_as_long_as_its_qemu_answers(
    daemon: Daemon, web: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.hangs = {"snapshotCreateXML"}
    threading.Timer(0.3, daemon.released.set).start()
    web.snapshot_create("<domainsnapshot/>")
    assert "jobInfo" in daemon.calls


def test_dump_of_a_qemu_that_does_not_answer_is_given_up(daemon: Daemon, web: Guest) -> None:
    daemon.hangs = {"snapshotCreateXML", "jobInfo"}
    with pytest.raises(NoAnswer, match="web: memory snapshot: no answer"):
        web.snapshot_create("<domainsnapshot/>")


def test_dump_is_given_up_with_any_other_call(daemon: Daemon, web: Guest) -> None:
    """libvirt may refuse to ask while another call hangs: that proves nothing."""
    daemon.hangs = {"snapshotCreateXML", "abortJob"}
    daemon.at["jobInfo"] = lambda: (_ for _ in ()).throw(
        Failure("cannot acquire state change lock")
    )

    def abort() -> None:
        with pytest.raises(NoAnswer):
            web.abort_job()

    aborting = threading.Timer(0.05, abort)
    aborting.start()
    with pytest.raises(NoAnswer, match="memory snapshot: its QEMU did not answer before"):
        web.snapshot_create("<domainsnapshot/>")
    aborting.join()


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """libvirt's function for QEMU's monitor, with what it answers; it has what QEMU was told."""
    told: list[tuple[str, dict[str, Any]]] = []
    answers = {"query-named-block-nodes": {"return": [{"node-name": "n"}], "id": "libvirt-7"}}
    refusal = {"error": {"class": "GenericError", "desc": "Node n is in use"}, "id": "libvirt-8"}

    def command(_domain: object, text: str, flags: int) -> str:
        assert flags == 0  # the text is JSON
        asked = json.loads(text)
        told.append((asked["execute"], asked["arguments"]))
        return json.dumps(answers.get(asked["execute"], refusal))

    module = SimpleNamespace(qemuMonitorCommand=command)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", module)
    return told


def test_monitor_of_qemu(web: Guest, monitor: list[tuple[str, dict[str, Any]]]) -> None:
    assert web.ask_qemu("query-named-block-nodes", {}) == [{"node-name": "n"}]
    with pytest.raises(LibvirtFailed, match="web: QEMU's blockdev-del: QEMU refused: Node n is in"):
        web.ask_qemu("blockdev-del", {"node-name": "n"})
    assert monitor == [("query-named-block-nodes", {}), ("blockdev-del", {"node-name": "n"})]


def test_monitor_that_cannot_be_asked(web: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt_qemu", None)
    with pytest.raises(LibvirtFailed, match=r"it cannot be asked: .*libvirt_qemu"):
        web.ask_qemu("query-named-block-nodes", {})
    module = SimpleNamespace(qemuMonitorCommand=lambda *_arguments: "")
    monkeypatch.setitem(sys.modules, "libvirt_qemu", module)
    with pytest.raises(LibvirtFailed, match="its answer is no JSON"):
        web.ask_qemu("query-named-block-nodes", {})


def test_lost_connection_costs_one_call(daemon: Daemon, web: Guest) -> None:
    def lose() -> None:
        daemon.connections[-1].alive = False

    daemon.at["snapshotCreateXML"] = lose
    with pytest.raises(ConnectionLost, match="the connection to libvirt was lost: client socket"):
        web.snapshot_create("<domainsnapshot/>")
    web.resume()
    assert daemon.calls == ["snapshotCreateXML", "resume"]
    assert len(daemon.connections) == 2


def test_lost_connection_without_libvirt(daemon: Daemon, web: Guest) -> None:
    daemon.connections[-1].alive = False
    daemon.is_up = False
    with pytest.raises(ConnectionLost, match="Failed to connect socket; is libvirt running"):
        web.resume()
    with pytest.raises(HypervisorUnreachable):
        Host.connect("test:///")
    daemon.is_up = True
    web.resume()


def test_libvirtd_that_does_not_answer(daemon: Daemon) -> None:
    daemon.is_opening_slow = True
    with pytest.raises(HypervisorUnreachable, match="test:///: libvirt gives no answer: given up"):
        Host.connect("test:///")


def test_guests_apart_have_connections_of_their_own(daemon: Daemon) -> None:
    with Host.connect("test:///") as connected:
        web = connected.guest(UUID)
        with web.apart() as one, web.apart() as two:
            for guest in (one, two):
                guest.resume()
            assert [opened.alive for opened in daemon.connections] == [True] * 3
        assert [opened.alive for opened in daemon.connections] == [True, False, False]
    assert not daemon.connections[0].alive
    with pytest.raises(DomainGone):
        Host.connect("test:///").guest("c0ffee00-0000-4000-8000-0000000000ff")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A RAM image, for which QEMU is looked at often."""
    monkeypatch.setattr(libvirt, "VIR_DOMAIN_SAVE_PAUSED", 4, raising=False)
    monkeypatch.setattr(host, "_LOOK_EVERY_S", 0.01)
    path = tmp_path / "memory.img"
    path.write_bytes(libvirt_image(f"<domain><name>web</name><uuid>{UUID}</uuid></domain>"))
    return str(path)


def test_load_is_waited_for_as_long_as_it_goes_on(daemon: Daemon, image: str) -> None:
    daemon.hangs = {"restoreFlags"}
    threading.Timer(0.3, daemon.released.set).start()
    Host.connect("test:///").restore(image, paused=True)
    assert daemon.calls == ["restoreFlags"]


def test_load_that_does_not_go_on_is_given_up(
    daemon: Daemon, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_process, "STUCK_S", 0.05)
    daemon.hangs = {"restoreFlags"}
    connected = Host.connect("test:///")
    with pytest.raises(NoAnswer, match=r"memory\.img: given up: QEMU has neither read nor worked"):
        connected.restore(image, paused=True)
    connected.guest(UUID).destroy()
    assert len(daemon.connections) == 2  # the call keeps its place in the old one


def test_load_that_fails(daemon: Daemon, image: str) -> None:
    daemon.at["restoreFlags"] = lambda: (_ for _ in ()).throw(Failure("no such disk"))
    with pytest.raises(LibvirtFailed, match=r"memory\.img: no such disk"):
        Host.connect("test:///").restore(image, paused=True)
