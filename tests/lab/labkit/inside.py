"""Runs inside the lab, as a service: commands and files, for less than ssh takes.

Each ssh session costs the emulated machine three programs more, and each wait for something has
many. It is part of a stage (see agent.py), so it answers as soon as that is loaded.

A connection is one question: a line of JSON, and bytes; and one answer, likewise.
"""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
from pathlib import Path
from typing import Any

Answer = tuple[dict[str, Any], bytes]


def run(asked: dict[str, Any], content: bytes) -> Answer:
    """A shell command, as sshd would run it; all that has its streams is waited for."""
    process = subprocess.Popen(
        ["/bin/bash", "-c", asked["text"]],
        stdin=subprocess.PIPE if asked["fed"] else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/root", start_new_session=True)
    stdout, stderr = process.communicate(content if asked["fed"] else None)
    status = process.returncode
    # What ssh says of a command that was killed.
    return {"status": 255 if status < 0 else status, "stdout": len(stdout)}, stdout + stderr


def read(asked: dict[str, Any], _content: bytes) -> Answer:
    """A file."""
    return {}, Path(asked["path"]).read_bytes()


def write(asked: dict[str, Any], content: bytes) -> Answer:
    """A file, in place of what has its name, and the directories above it."""
    path = Path(asked["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(asked["mode"])
    return {}, b""


ANSWERS = {"run": run, "read": read, "write": write}


class Question(socketserver.StreamRequestHandler):
    """One connection."""

    token = ""

    def handle(self) -> None:
        """Answer, if the token is right."""
        asked = json.loads(self.rfile.readline())
        if asked["token"] != self.token:
            return
        try:
            said, content = ANSWERS[asked["do"]](asked, self.rfile.read(asked["bytes"]))
        except OSError as error:
            said, content = {"error": str(error), "errno": error.errno}, b""
        head = json.dumps({**said, "bytes": len(content)}).encode()
        self.wfile.write(head + b"\n" + content)


class Server(socketserver.ThreadingTCPServer):
    """All of them at once."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def main(port: str, settings: str) -> None:
    """Serve, with the token and the environment that are kept in a file."""
    told = json.loads(Path(settings).read_text())
    os.environ.clear()
    os.environ.update(told["environment"])
    Question.token = told["token"]
    Server(("", int(port)), Question).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
