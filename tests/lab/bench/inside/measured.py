"""Runs in the lab: how long commands take, and how much memory the largest process of each has.

stdin: {"repeats": 3, "warm": true, "commands": {"name": {"argv": [...], "env": {...}}}}. They are
run in turn, so that what else the machine does meets all of them. With `warm`, once more before,
which does not count. Seconds are by the clock, and of the CPU for all their processes.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def run(argv: list[str], env: dict[str, str]) -> tuple[dict[str, float], int, str]:
    """Its figures, exit status, and what it said last."""
    with Path(__file__).with_name("said").open("w+b") as said:
        begun_s = time.monotonic()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | env
        )
        # Of the process and all below it that it has waited for: the largest, not the sum.
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.monotonic() - begun_s
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(max(0, said.tell() - 300))
        figures = {
            "took_s": took_s,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
        }
        return figures, process.returncode, said.read().decode(errors="replace")


def main() -> None:
    """Measure."""
    asked = json.load(sys.stdin)
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in asked["commands"]}
    notes = []
    for number in range(-1 if asked["warm"] else 0, asked["repeats"]):
        for name, command in asked["commands"].items():
            found, status, said = run(command["argv"], command.get("env", {}))
            for measure, figure in found.items() if number >= 0 else ():
                figures[name].setdefault(measure, []).append(figure)
            if status not in command.get("statuses", [0]):
                notes.append(f"{name}: exit status {status}: {' '.join(said.split())[-200:]}")
    print(json.dumps({"figures": figures, "notes": list(dict.fromkeys(notes))}))


if __name__ == "__main__":
    main()
