"""Talk to QEMU's control socket."""

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from labkit.errors import LabError


class Qmp:
    """One conversation with a QEMU."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        """Connect; a QEMU that has only just been started is waited for."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        # By way of a descriptor, since the address of a socket must be short.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._connect(f"/proc/self/fd/{directory}/{path.name}", timeout_s)
        finally:
            os.close(directory)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def _connect(self, address: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._socket.connect(address)
            except (FileNotFoundError, ConnectionRefusedError) as exc:
                if time.monotonic() > deadline:
                    raise LabError("QEMU does not open its control socket") from exc
                time.sleep(0.02)

    def __enter__(self) -> "Qmp":
        """Use with `with`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run one command and return what it returned; events are passed over."""
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise LabError(f"QEMU hung up on {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU: {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def forward(self, port: int, inside: int) -> None:
        """Lead a port of this host to one of the machine."""
        line = f"hostfwd_add net tcp:127.0.0.1:{port}-:{inside}"
        said = self.execute("human-monitor-command", {"command-line": line})
        if said.strip():
            raise LabError(f"QEMU: {line}: {said}")

    def until_migrated(self, timeout_s: float) -> None:
        """Wait until the state has been written."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.execute("query-migrate")
            if status.get("status") == "completed":
                return
            if status.get("status") in ("failed", "cancelled"):
                raise LabError(f"QEMU could not save its state: {status.get('error-desc')}")
            time.sleep(0.02)
        raise LabError(f"QEMU did not save its state within {timeout_s:.0f} s")

    def until_loaded(self, timeout_s: float) -> None:
        """Wait until a state has been read; the machine is then stopped."""
        deadline = time.monotonic() + timeout_s
        while self.execute("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise LabError(f"QEMU did not load its state within {timeout_s:.0f} s")
            time.sleep(0.02)
