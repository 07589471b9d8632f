"""Runs in the lab: from the beginning of a command to the next count of the guest that it starts.

next_count.py LOG COMMAND...: LOG is what the guest prints. Its next count is the first one that
does not follow upon the one before: it has gone to another time. With COMMAND `call IMAGE`,
virDomainRestore is called, by a connection that is open already.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time

POLL_S = 0.01
LIMIT_S = 300.0
COUNT = re.compile(rb"(?<! )([0-9a-f]{8})\n")


class Log:
    """What a guest prints from now on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.read_bytes = os.stat(path).st_size if os.path.exists(path) else 0
        self.last = self._last_before()

    def _last_before(self) -> int | None:
        if not self.read_bytes:
            return None
        with open(self.path, "rb") as file:
            counts = COUNT.findall(file.read())
        return int(counts[-1], 16) if counts else None

    def jumped(self) -> bool:
        """Has it gone to another time?"""
        if not os.path.exists(self.path) or os.stat(self.path).st_size <= self.read_bytes:
            return False
        with open(self.path, "rb") as file:
            file.seek(self.read_bytes)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.read_bytes += whole
        for found in COUNT.findall(text[:whole]):
            count, before = int(found, 16), self.last
            self.last = count
            if before is None or count != before + 1:
                return True
        return False


def begin(words: list[str]) -> threading.Thread:
    """Begin the command; the thread ends with it."""
    if words[0] == "call":
        import libvirt

        connection = libvirt.open("qemu:///system")
        return threading.Thread(target=connection.restore, args=(words[1],))
    return threading.Thread(target=subprocess.run, args=(words,), kwargs={"check": True})


def main(path: str, *words: str) -> None:
    """Print the seconds until the command's end, and until the next count."""
    failures = []
    threading.excepthook = lambda failed: failures.append(str(failed.exc_value))
    log, command = Log(path), begin(list(words))
    begun_s = time.monotonic()
    command.start()
    ended_s = counted_s = None
    while ended_s is None or counted_s is None:
        now_s = time.monotonic() - begun_s
        if counted_s is None and log.jumped():
            counted_s = now_s
        if ended_s is None and not command.is_alive():
            ended_s = now_s
        if failures or now_s > LIMIT_S:
            sys.exit(f"{words}: {failures or f'no count after {LIMIT_S:.0f} s'}")
        time.sleep(POLL_S)
    print(json.dumps({"took_s": ended_s, "next_count_s": counted_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
