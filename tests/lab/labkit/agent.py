"""Ask what runs inside the lab (inside.py), which is quicker than ssh; and put it there."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import LabError
from labkit.image import Image

PORT = 2222
SOURCE = Path(__file__).with_name("inside.py")

# No name of the product in it: tests end what has that.
_PROGRAM = "/usr/local/lib/lab-agent/inside.py"
_SETTINGS = "/usr/local/lib/lab-agent/settings.json"
_UNIT = f"""\
[Unit]
Description=The lab's agent
After=ssh.service libvirtd.socket

[Service]
ExecStart=/usr/bin/python3 {_PROGRAM} {PORT} {_SETTINGS}
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
# Commands find themselves where sshd would put them.
_KEEP_ENVIRONMENT = f"""
import json, os, sys
kept = {{k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_"))}}
told = {{"token": sys.argv[1], "environment": kept}}
with open("{_SETTINGS}", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    json.dump(told, file)
"""


class Host(Protocol):
    """What is needed of a lab to put the agent there."""

    def run(self, command: str, *, stdin: str | bytes | None = None) -> Any:
        """Run a command in the lab."""


def install(lab: Host, image: Image) -> None:
    """Put it into the lab and start it, now and at each boot."""
    lab.run(f"install -D -m 644 /dev/stdin {_PROGRAM}", stdin=SOURCE.read_bytes())
    lab.run("cat > /etc/systemd/system/lab-agent.service", stdin=_UNIT)
    lab.run(f"python3 - {_token(image)}", stdin=_KEEP_ENVIRONMENT)
    lab.run("systemctl daemon-reload && systemctl enable --now --quiet lab-agent.service")
    lab.run(f"until ss -Hltn sport = {PORT} | grep -q .; do sleep 0.1; done")


def _token(image: Image) -> str:
    """Who may read the image's key may ask the agent, like sshd."""
    return hashlib.sha256(b"agent" + image.ssh_key.read_bytes()).hexdigest()


class Agent:
    """The agent of one lab, at a port of this host."""

    def __init__(self, image: Image, port: int) -> None:
        """Ask nothing yet."""
        self._token = _token(image)
        self._port = port

    def wait(self, timeout_s: float, raise_if_dead: Callable[[], None]) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.ask({"do": "read", "path": "/etc/hostname"}, b"", 5.0)
                return
            except (OSError, LabError):
                raise_if_dead()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def ask(self, question: dict[str, Any], content: bytes, timeout_s: float,
            ) -> tuple[dict[str, Any], bytes]:
        """One question and its answer; TimeoutError if that does not come in time."""
        deadline = time.monotonic() + timeout_s
        asked = {**question, "token": self._token, "bytes": len(content)}
        with socket.create_connection(("127.0.0.1", self._port), timeout_s) as connection:
            connection.sendall(json.dumps(asked).encode() + b"\n" + content)
            said = b""
            while True:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                part = connection.recv(1 << 18)
                if not part:
                    break
                said += part
        head, _, body = said.partition(b"\n")
        told: dict[str, Any] = json.loads(head) if head else {}
        if len(body) != told.get("bytes"):
            raise ConnectionError("the lab's agent hung up")
        return told, body
