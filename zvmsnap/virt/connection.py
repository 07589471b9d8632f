"""Connections to libvirt whose calls can be given up, and which are made anew when they are lost.

No call to QEMU's monitor has a time limit in libvirt: one QEMU that is stopped, or waits for a
suspended pool, would hold its caller for ever. So each call runs in a thread, and is given up:

| call                                  | is given up                                            |
|---------------------------------------|--------------------------------------------------------|
| loads RAM                             | when its QEMU neither reads nor works (Host.restore)   |
| writes RAM, starts the guest          | when its QEMU does not answer another question         |
| of the agent, which has its own limit | the same                                               |
| stops the guest, pivots a disk        | after _SLOW_S                                          |
| any other                             | after ANSWER_S                                         |

A QEMU that did not answer once is not asked again through the same object. What libvirt knows
without QEMU (whether it is on) can be asked all the same, and a process that does not answer can be
ended. The definition is shown, too, but each time after the 30 s that libvirt waits for the call
that hangs (seen with 11.3); so it is asked for once.

libvirtd serves only 5 calls of a connection at a time, and closes one whose further calls keep it
from answering for half a minute. So whoever works on a guest beside others has a connection of its
own (`Domain.apart`).
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import libvirt

from zvmsnap.common import foreign
from zvmsnap.common.errors import (
    AgentSilent,
    BlockJobNotReady,
    ConnectionLost,
    DomainGone,
    DomainLocked,
    DumpAborted,
    GivenUp,
    HypervisorUnreachable,
    LibvirtFailed,
    NoAnswer,
)
from zvmsnap.common.waiting import Call
from zvmsnap.virt import domain_xml

# libvirt itself waits 30 s for another call on the same guest, and says so.
ANSWER_S = 60.0
_SLOW_S = 90.0
_LOCKED_S = 25.0
_DEFINITION = "XMLDesc"
_ASK_EVERY_S = 20.0

_LIMITS_S = {
    **dict.fromkeys(
        (
            "createWithFlags",
            "fsFreeze",
            "fsThaw",
            "qemuAgentCommand",
            "saveFlags",
            "saveParams",
            "setTime",
            "snapshotCreateXML",
        ),
        math.inf,
    ),
    "blockJobAbort": _SLOW_S,
    "destroy": _SLOW_S,
}
_WITHOUT_QEMU = {
    "XMLDesc",
    "connect",
    "destroy",
    "domainEventDeregisterAny",
    "domainEventRegisterAny",
    "hasManagedSaveImage",
    "isActive",
    "isPersistent",
    "listAllCheckpoints",
    "listAllSnapshots",
    "managedSaveDefineXML",
    "managedSaveGetXMLDesc",
    "state",
    "undefineFlags",
}

_CLASSES: dict[int, type[LibvirtFailed]] = {
    libvirt.VIR_ERR_NO_DOMAIN: DomainGone,
    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE: BlockJobNotReady,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: DomainLocked,
    libvirt.VIR_ERR_OPERATION_ABORTED: DumpAborted,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: AgentSilent,
}
# What is asked for is not possible with the guest as it is.
REFUSALS = frozenset(
    (
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    )
)

Answer = TypeVar("Answer")

_loop_started = threading.Lock()


class LostConnection(Exception):
    """The connection broke during the call; what libvirt had begun for it may go on."""


class QemuRefused(Exception):
    """QEMU does not do what its monitor was told."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise libvirt's errors as our own, with what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        code = error.get_error_code() or 0
        message = foreign.line(error.get_error_message() or str(error))
        raise _CLASSES.get(code, LibvirtFailed)(f"{doing}: {message}", code) from error
    except (UnicodeError, SystemError) as error:
        # The binding takes text for UTF-8. In an answer it raises UnicodeDecodeError otherwise, in
        # the message of an error SystemError ("returned a result with an exception set").
        raise LibvirtFailed(f"{doing}: what it says is no UTF-8 text") from error
    except LostConnection as error:
        raise ConnectionLost(f"{doing}: the connection to libvirt was lost: {error}") from error
    except QemuRefused as error:
        raise LibvirtFailed(f"{doing}: QEMU refused: {error}") from error
    except GivenUp as error:
        raise NoAnswer(f"{doing}: {error}") from error


class Connection:
    """A connection to libvirt; of several that use it, each waits for its own call only."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._making = threading.Lock()
        self._opened: Any = None

    def open(self) -> Any:
        """libvirt's own object: the one of now, or a new one. Raises HypervisorUnreachable."""
        with self._making:
            if self._opened is None or not self._opened.isAlive():
                self._opened = _open(self._uri)
            return self._opened

    def begin(self, call: Callable[[Any], Answer]) -> Call[Answer]:
        """Begin a call with libvirt's own object. Raises LostConnection if there is no libvirt."""
        try:
            opened = self.open()
        except HypervisorUnreachable as error:
            raise LostConnection(str(error)) from error

        def begun() -> Answer:
            try:
                return call(opened)
            except libvirt.libvirtError as error:
                if opened.isAlive():
                    raise
                raise LostConnection(error.get_error_message()) from error

        return Call(begun)

    def do(self, call: Callable[[Any], Answer], limit_s: float = ANSWER_S) -> Answer:
        """The answer of a call. Raises libvirtError, LostConnection and GivenUp."""
        try:
            return self.begin(call).answer(limit_s)
        except GivenUp:
            self.forget()
            raise

    def forget(self) -> None:
        """Let the next call make a new one: a call that was given up keeps one of five places."""
        self._opened = None

    def apart(self) -> Connection:
        """Another one to the same libvirt, made when it is needed."""
        return Connection(self._uri)

    def close(self) -> None:
        """Close it, unless a call of it was given up."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with suppress(GivenUp, libvirt.libvirtError):
                Call(opened.close).answer(ANSWER_S)


class Domain:
    """A domain with the methods of libvirt's own object, each of which can be given up."""

    def __init__(self, connection: Connection, uuid: str) -> None:
        self._connection = connection
        self._uuid = uuid
        self._known: tuple[Any, Any] = (None, None)
        self._is_silent = False
        self._is_locked = False
        self._questions: set[Call[Any]] = set()
        self._answered_at_s = 0.0
        self._volume_paths: dict[tuple[str, str], str] = {}

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return self.do(method, lambda domain: getattr(domain, method)(*arguments))

        return call

    def apart(self) -> Domain:
        """The same domain, through a connection of its own."""
        return Domain(self._connection.apart(), self._uuid)

    def close(self) -> None:
        """Close its connection."""
        self._connection.close()

    def do(self, method: str, call: Callable[[Any], Answer]) -> Answer:
        """The answer of a call with libvirt's own object; `method` says which limit it has.

        Raises libvirtError, LostConnection and GivenUp.
        """
        limit_s = _LIMITS_S.get(method, ANSWER_S)
        if method in _WITHOUT_QEMU:
            return self._without_qemu(method, call, limit_s)
        self._refuse_if_silent()
        try:
            begun = self._connection.begin(lambda opened: call(self._of(opened)))
            if math.isinf(limit_s):
                self._accompany(begun)
            return self._answer_of(begun, limit_s)
        except GivenUp:
            self._is_silent = True
            self._connection.forget()
            raise

    def definition(self, flags: int) -> str:
        """Its XML, with the path of each volume of a storage pool: domain_xml.with_volume_paths."""
        xml = str(self.do(_DEFINITION, lambda domain: domain.XMLDesc(flags)))
        return domain_xml.with_volume_paths(xml, self._volume_path)

    def _volume_path(self, pool: str, volume: str) -> str:
        """ "" if the pool is not active, or does not know it."""
        if (pool, volume) not in self._volume_paths:
            try:
                path = self._connection.do(lambda opened: volume_path(opened, pool, volume))
            except (libvirt.libvirtError, LostConnection, GivenUp):
                return ""
            self._volume_paths[pool, volume] = path
        return self._volume_paths[pool, volume]

    def picture(self) -> bytes:
        """Its first screen, in the form that QEMU gives it."""
        return self.do("screenshot", _screenshot)

    def ask_agent(self, command: str, timeout_s: int) -> str:
        """Its agent's answer to a command (JSON)."""
        import libvirt_qemu

        return self.do(
            "qemuAgentCommand",
            lambda domain: str(libvirt_qemu.qemuAgentCommand(domain, command, timeout_s, 0)),
        )

    def ask_qemu(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """What QEMU's monitor answers to a command of its own. Raises QemuRefused."""
        try:
            import libvirt_qemu
        except ImportError as error:
            raise QemuRefused(f"it cannot be asked: {error}") from error
        asked = json.dumps({"execute": command, "arguments": arguments})
        text = self.do(
            "qemuMonitorCommand",
            lambda domain: str(libvirt_qemu.qemuMonitorCommand(domain, asked, 0)),
        )
        try:
            answer = json.loads(text)
            if "return" not in answer:
                raise QemuRefused(answer.get("error", {}).get("desc", "it gives no reason"))
            return answer["return"]
        except ValueError as error:
            raise QemuRefused(f"its answer is no JSON: {error}") from error

    def _without_qemu(self, method: str, call: Callable[[Any], Answer], limit_s: float) -> Answer:
        """What libvirt knows by itself. It shows a definition after 30 s if another call hangs."""
        if method == _DEFINITION and self._is_locked:
            raise GivenUp("libvirt waits for its QEMU, which does not answer: not asked again")
        begun_s = time.monotonic()
        answer = self._connection.do(lambda opened: call(self._of(opened)), limit_s)
        if method == _DEFINITION and time.monotonic() - begun_s > _LOCKED_S:
            self._is_locked = True
        return answer

    def _accompany(self, begun: Call[Any]) -> None:
        """Wait for a call without limit. Raises GivenUp if QEMU answers nobody meanwhile.

        libvirtd has 20 threads for all: it is asked only if nobody else does.
        """
        while not begun.ended(_ASK_EVERY_S):
            self._refuse_if_silent()
            is_asked = self._questions or time.monotonic() - self._answered_at_s < _ASK_EVERY_S
            if not is_asked:
                # While the call changes the guest libvirt may refuse to ask: that proves nothing.
                with suppress(libvirt.libvirtError, LostConnection):
                    self.do("jobInfo", lambda domain: domain.jobInfo())

    def _answer_of(self, begun: Call[Answer], limit_s: float) -> Answer:
        self._questions.add(begun)
        try:
            return begun.answer(limit_s)
        finally:
            self._questions.discard(begun)
            self._answered_at_s = time.monotonic()

    def _refuse_if_silent(self) -> None:
        if self._is_silent:
            raise GivenUp("its QEMU did not answer before: not asked again")

    def _of(self, opened: Any) -> Any:
        connection, domain = self._known
        if connection is not opened:
            domain = opened.lookupByUUIDString(self._uuid)
            self._known = (opened, domain)
        return domain


def volume_path(opened: Any, pool: str, volume: str) -> str:
    """The path of a volume of a storage pool, asked of a connection. Raises libvirtError."""
    return str(opened.storagePoolLookupByName(pool).storageVolLookupByName(volume).path())


def _screenshot(domain: Any) -> bytes:
    stream = domain.connect().newStream(0)
    domain.screenshot(stream, 0, 0)
    chunks: list[bytes] = []
    stream.recvAll(lambda _stream, data, _opaque: chunks.append(data), None)
    stream.finish()
    return b"".join(chunks)


def _open(uri: str) -> Any:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    _start_event_loop()
    try:
        return Call(lambda: libvirt.open(uri)).answer(ANSWER_S)
    except libvirt.libvirtError as error:
        raise HypervisorUnreachable(
            f"{uri}: {error.get_error_message()}; is libvirt running?"
        ) from error
    except GivenUp as error:
        raise HypervisorUnreachable(f"{uri}: libvirt gives {error}") from error


def _start_event_loop() -> None:
    # libvirt: the loop must exist before the first connection, and must then be run for ever.
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    try:
        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
    except RuntimeError:
        _loop_started.release()  # the next connection tries again
        raise
