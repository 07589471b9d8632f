"""Runs inside the lab, fed to `python3 - STATE read|write [SECRET]`: what a TPM keeps for itself.

Starts swtpm on the state of a guest that is off, and speaks to it as the guest would: commands of
TPM 2.0, part 3 (NV_DefineSpace, NV_Write, NV_Read), with the owner's empty password.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

PORT = 2321
OWNER, PASSWORD_SESSION = 0x40000001, 0x40000009
INDEX = 0x01000001
DEFINE, WRITE, READ, SHUTDOWN = 0x12A, 0x137, 0x14E, 0x145
ATTRIBUTES = 1 << 1 | 1 << 2 | 1 << 17 | 1 << 18 | 1 << 25  # owner's and own read and write
SECRET_BYTES = 8


def framed(tag: int, code: int, body: bytes) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def ask(tpm: socket.socket, code: int, handles: tuple[int, ...], parameters: bytes) -> bytes:
    session = struct.pack(">IHBH", PASSWORD_SESSION, 0, 0, 0)
    body = b"".join(struct.pack(">I", each) for each in handles)
    tpm.sendall(framed(0x8002, code, body + struct.pack(">I", len(session)) + session + parameters))
    answer = tpm.recv(4096)
    (result,) = struct.unpack_from(">I", answer, 6)
    if result:
        raise SystemExit(f"command {code:#x} failed: {result:#x}")
    return answer[14:]


def connected() -> socket.socket:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", PORT), 30)
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def main(state: str, verb: str, secret: str = "") -> None:
    owner = os.stat(state)
    swtpm = subprocess.Popen(
        ["aa-exec", "-p", "unconfined", "--", "swtpm", "socket", "--tpm2",
         "--tpmstate", f"dir={state}", "--server", f"type=tcp,port={PORT},bindaddr=127.0.0.1",
         "--flags", "not-need-init,startup-clear"]
    )
    try:
        with connected() as tpm:
            if verb == "define":
                public = struct.pack(">IHIHH", INDEX, 0x0B, ATTRIBUTES, 0, SECRET_BYTES)
                ask(tpm, DEFINE, (OWNER,), struct.pack(">HH", 0, len(public)) + public)
            elif verb == "write":
                data = secret.encode().ljust(SECRET_BYTES)
                ask(tpm, WRITE, (OWNER, INDEX), struct.pack(">H", len(data)) + data + b"\0\0")
            else:
                said = ask(tpm, READ, (OWNER, INDEX), struct.pack(">HH", SECRET_BYTES, 0))
                print(said[2:2 + SECRET_BYTES].decode().strip())
            tpm.sendall(framed(0x8001, SHUTDOWN, b"\0\0"))
            tpm.recv(4096)
    finally:
        swtpm.terminate()
        swtpm.wait(30)
    for path in (Path(state), *Path(state).iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)


if __name__ == "__main__":
    main(*sys.argv[1:])
