"""The command line: `tests/lab/lab`."""

import argparse
import os
import sys
from collections.abc import Sequence

from labkit import image, progress, settings
from labkit.api import Lab
from labkit.errors import LabError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description="A Debian machine with ZFS and libvirt to test zvmsnap in.",
        epilog="ZVMSNAP_LAB_INSTANCE names the instance (default: default); several may run. "
               "ZVMSNAP_LAB_ACCEL=kvm|tcg decides how; XDG_CACHE_HOME where all is kept.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", help="build the image (minutes; done once)")
    for name, default, text in (
            ("up", "ready", "run the lab, from STATE if it does not run yet"),
            ("reset", "guests", "run the lab from STATE, whatever it did before")):
        commands.add_parser(name, help=text).add_argument("state", nargs="?", default=default)
    commands.add_parser("save", help="keep the running lab as STATE of this instance"
                        ).add_argument("state")
    ssh = commands.add_parser("ssh", help="a shell in the lab, or one command")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    commands.add_parser("sync", help="copy the checkout's code to /opt/zvmsnap in the lab")
    commands.add_parser("powercut", help="cut the power, boot again from the same disks")
    commands.add_parser("down", help="stop the lab")
    commands.add_parser("status", help="what runs, and which states there are")
    return parser


def _status(lab: Lab) -> None:
    note = lab.instance.running()
    if note is None:
        print(f"instance {lab.instance.name}: down")
    else:
        print(f"instance {lab.instance.name}: up from state {note.state or '(booted)'}, "
              f"process {note.pid}, ssh port {note.ssh_port}")
    built = settings.cache_dir() / f"image-{image.key()}"
    print(f"files: {lab.instance.directory}")
    print(f"image: {built}{'' if built.exists() else ' (not built)'}")
    print(f"states: {' '.join(lab.states())}")


def _ssh(lab: Lab, words: Sequence[str]) -> None:
    argv = lab.shell.argv(*words)
    if not words and sys.stdin.isatty():
        argv.insert(1, "-t")
    os.chdir(lab.instance.directory)
    os.execvp(argv[0], argv)


def _change(lab: Lab, arguments: argparse.Namespace) -> None:
    with lab.alone():
        match arguments.command:
            case "up":
                lab.up(arguments.state)
            case "reset":
                lab.reset(arguments.state)
            case "save":
                lab.save(arguments.state)
            case "powercut":
                lab.powercut()
            case "down":
                lab.down()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 1 if the lab could not do it."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "build":
            print(image.image().directory)
            return 0
        lab = Lab()
        match arguments.command:
            case "status":
                _status(lab)
            case "ssh":
                _ssh(lab, arguments.words)
            case "sync":
                lab.sync()
            case _:
                _change(lab, arguments)
    except LabError as exc:
        progress.say(f"error: {exc}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
