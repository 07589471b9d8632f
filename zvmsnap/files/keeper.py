"""The process that holds a view: it makes all that the view needs, and removes it at the end.

`zvmsnap keep-view` is for `files` and `mount` alone. The first line of its input is the view, and
the one line that it prints says whether it is open (`Opened`). After that:

| its input                | the view                                                       |
|--------------------------|----------------------------------------------------------------|
| ends                     | is closed: its caller is done, or dead                         |
| says `stay`, and ends    | stays until somebody unmounts it, or stops this process        |
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir
from zvmsnap.common.signals import cancelled_by_signal
from zvmsnap.common.waiting import in_background
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.files import appliance, ending, images
from zvmsnap.files.images import Image
from zvmsnap.files.record import View, Views
from zvmsnap.point_disks import opened as point_disks
from zvmsnap.points.point import read_point

COMMAND = "keep-view"
STAY = b"stay\n"
_TRY_EVERY_S = 0.2


class Opened(msgspec.Struct, frozen=True):
    """How a view was opened, or why it was not.

    `places` are the mountpoints inside of it, `left_out` disks and file systems that cannot be
    seen, `size_bytes` that of all disks. `is_windows`: names do not differ by case.
    """

    error: str = ""
    places: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    size_bytes: int = 0
    is_windows: bool = False


def main() -> int:
    """`zvmsnap keep-view`; returns the exit code."""
    log.setup()
    closing = cancelled_by_signal()
    view = json_file.decode(sys.stdin.buffer.readline(), View)
    view = msgspec.structs.replace(view, owner=Process.of(os.getpid()))
    threading.Thread(target=_follow_input, args=(closing,), daemon=True).start()
    is_open = False

    def tell(opened: Opened) -> None:
        nonlocal is_open
        is_open = True
        _say(opened)

    try:
        keep(load_settings(), view, closing, tell)
    except Exception as error:
        if is_open:
            log.failure(log.plain(), error, view.point)
        else:
            _say(Opened(error=log.one_line(error)))
        return EXIT_FAILED
    return EXIT_OK


def keep(
    config: Config, view: View, closing: threading.Event, tell: Callable[[Opened], None]
) -> None:
    """Open the view, `tell` it, and hold it until it is unmounted; `closing` unmounts it.

    Raises FilesImpossible and the like; nothing is left of the view, or `zvmsnap recover` ends it.
    """
    appliance.check_installed()
    views = Views(config.journal_dir)
    views.write(view)

    def note(datasets: tuple[str, ...]) -> None:
        nonlocal view
        view = msgspec.structs.replace(view, datasets=datasets)
        views.write(view)

    try:
        point = read_point(Path(view.directory))
        with point_disks.opened(config, point, view.name, note) as disks:
            _show(view, *images.make(view.work, point, disks), closing, tell)
    finally:
        ending.end(config, view)


def _show(
    view: View,
    disks: Sequence[Image],
    left_out: Sequence[str],
    closing: threading.Event,
    tell: Callable[[Opened], None],
) -> None:
    if not view.stays:
        private_dir(Path(view.mountpoint))
    with (
        _ended_on(closing, view),
        appliance.launched(disks, view.work, closing) as machine,
    ):
        found, not_mounted = machine.mount(by_device=view.by_device)
        _refuse_if(closing)
        machine.show(view.mountpoint)
        places = tuple(place for place, _ in found.places)
        lines = (*left_out, *not_mounted)
        size_bytes = sum(disk.disk_bytes for disk in disks)
        tell(Opened("", places, lines, size_bytes, found.is_windows))
        machine.serve()


def _refuse_if(closing: threading.Event) -> None:
    if closing.is_set():
        raise FilesImpossible("interrupted")


@contextmanager
def _ended_on(closing: threading.Event, view: View) -> Iterator[None]:
    """End the view as soon as that is set: the main thread is in a call of libguestfs."""

    def watch(ended: threading.Event) -> None:
        while not ended.wait(_TRY_EVERY_S):
            if closing.is_set():
                with suppress(FilesImpossible, OSError):
                    ending.end_calls(view)

    with in_background("end", watch):
        yield


def _follow_input(closing: threading.Event) -> None:
    # Not by sys.stdin: Python could not end while a thread waits for that.
    said = b""
    while some := os.read(sys.stdin.fileno(), len(STAY)):
        said += some
    if said != STAY:
        closing.set()
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, descriptor)


def _say(opened: Opened) -> None:
    with suppress(OSError):  # nobody waits for it any more
        sys.stdout.buffer.write(msgspec.json.encode(opened) + b"\n")
        sys.stdout.buffer.flush()
