"""Page images on the machine that runs the benchmark: no lab, so no emulation.

Of one image that is made up (`synthetic.py`), beside the commands whose speed the goals name. What
is read comes from the disk each time. What we write is on the disk when the time ends, as the
original goes only then, and libvirt loads only then; so `cp` is measured without that, and with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import synthetic
from bench.images import COPY, REBUILT, SHA256SUM
from bench.scene import Measured
from labkit.settings import CHECKOUT_DIR

APART, SYNCED_COPY = "taking apart", "cp, and the file on the disk"
IMAGE = "the image"

BUILD = CHECKOUT_DIR / "build"

_RAM_MIB, _SEED = 2048, 16
# Takes its arguments as those of cp; the last one is the file that was made.
_SYNCED = ("sh", "-c", 'cp "$@" && shift && sync "$2"', "sh")
_NEVER = "--reflink=never"
_OWN = Path(__file__).with_name("inside") / "page_images.py"

Figures = dict[str, float]


def measure(repeats: int, *, warm: bool, ram_mib: int = _RAM_MIB) -> Measured:
    """Each way in turn, with the image made once."""
    found = Measured()
    with _directory() as directory:
        image = directory / "image"
        synthetic.write(image, ram_mib, _SEED)
        for number in range(-1 if warm else 0, repeats):
            for name, way in _ways(directory, image).items():
                _forget(image)
                for each, figures in way(name).items():
                    if number >= 0:
                        found.add(each, **figures)
        found.add(IMAGE, size_mib=image.stat().st_size / (1 << 20))
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    """On the disk of the checkout; removed in the end."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="native-") as name:
        yield Path(name)


def _ways(directory: Path, image: Path) -> dict[str, Callable[[str], dict[str, Figures]]]:
    """What is measured in one go; it gets its name. Files of before are gone."""
    copy = str(image), str(directory / "copy")

    def run(name: str, *argv: str) -> dict[str, Figures]:
        Path(copy[1]).unlink(missing_ok=True)
        return {name: _run(argv)}

    def own(_name: str) -> dict[str, Figures]:
        shutil.rmtree(directory / "vault", ignore_errors=True)
        rebuilt = directory / "rebuilt"
        rebuilt.unlink(missing_ok=True)
        point = directory / "vault" / "made-up" / "point"
        argv = [sys.executable, *map(str, (_OWN, "natively", image, point, rebuilt))]
        env = os.environ | {"PYTHONPATH": str(CHECKOUT_DIR)}
        said = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=env).stdout
        found: dict[str, Figures] = json.loads(said)
        return {APART: found["apart"], REBUILT: found["rebuilt"]}

    return {
        SHA256SUM: lambda name: run(name, "sha256sum", copy[0]),
        APART: own,
        COPY: lambda name: run(name, "cp", _NEVER, *copy),
        SYNCED_COPY: lambda name: run(name, *_SYNCED, _NEVER, *copy),
    }


def _run(argv: Sequence[str]) -> Figures:
    begun_s = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.monotonic() - begun_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return {"took_s": took_s, "cpu_s": usage.ru_utime + usage.ru_stime}


def _forget(path: Path) -> None:
    """Have nothing of it in memory, for whoever reads it next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def conditions() -> dict[str, str]:
    """What these figures depend on besides the machine's CPUs."""

    def first_line(*argv: str) -> str:
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        return (done.stdout.splitlines() or [""])[0]

    linked = subprocess.run(
        ["ldd", shutil.which("sha256sum") or ""], check=False, capture_output=True, text=True
    )
    has_openssl = "libcrypto" in linked.stdout
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return {
        "natively, file system": first_line("stat", "-f", "-c", "%T", str(CHECKOUT_DIR)),
        "natively, sha256sum": first_line("sha256sum", "--version") + ", OpenSSL's" * has_openssl,
        "natively, SHA instructions": "yes" if flags & {"sha_ni", "sha2"} else "no",
        "natively, Python": sys.version.partition(" ")[0],
    }
