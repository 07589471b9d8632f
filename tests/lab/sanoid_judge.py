"""sanoid itself as the judge: for each sanoid.conf, what it snapshots, what `Rehearsal` says of it,
and how config/sanoid_conf reads it.

    python3 sanoid_judge.py SANOID DEFAULTS_FILE FILE... [--generated=N] [--seed=N]

`zfs` is a stand-in in PATH that lists a few datasets and writes down what it is told. Prints a line
for each configuration on which they do not agree, and how many there were of each kind; exits
with 1 if there was one. Needs zvmsnap, Perl with Config::IniFiles, and nothing of a lab.
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from zvmsnap.common.errors import SanoidConfInvalid
from zvmsnap.common.process import Process
from zvmsnap.config import sanoid_conf
from zvmsnap.hooks.callers import Caller
from zvmsnap.hooks.rehearsal import Rehearsal
from zvmsnap.journal.round import Round

DATASETS = ("tank", "tank/vm", "tank/vm/web", "tank/vm/web/data", "tank/db", "tank/db/wal")
ZFS = """#!/bin/sh
for top; do :; done
case "$*" in
*'list -o name'*) printf '%s\\n' {names} | grep -E "^$top(/|$)" ;;
'snapshot -r '*) echo "recursive $top" >> {told} ;;
'snapshot '*) echo "alone $top" >> {told} ;;
esac
exit 0
"""
TEMPLATES = "\n[template_p]\nhourly = 4\nautosnap = yes\n[template_q]\nautosnap = no\n"


class Judge:
    """Asks both, in directories of its own below `top`."""

    def __init__(self, top: Path, sanoid: Path, defaults: Path) -> None:
        self._top = top
        self._sanoid = sanoid
        self._told = top / "told"
        self._defaults = sanoid_conf.defaults_of(defaults.read_text())
        found = re.search(r"\$::VERSION\s*=\s*'([0-9.]+)'", sanoid.read_text())
        assert found
        self._version = tuple(map(int, found[1].split(".")))
        (top / "bin").mkdir()
        zfs = top / "bin" / "zfs"
        zfs.write_text(ZFS.format(names=" ".join(DATASETS), told=self._told))
        zfs.chmod(0o755)
        os.environ["PATH"] = f"{top}/bin:{os.environ['PATH']}"
        (top / "conf").mkdir()
        (top / "conf" / "sanoid.defaults.conf").write_bytes(defaults.read_bytes())

    def really(self, conf: bytes) -> dict[str, bool] | None:
        """Each dataset that sanoid snapshots: recursively? None if sanoid refuses the file."""
        self._told.unlink(missing_ok=True)
        words = [*self._words(conf), "--take-snapshots"]
        with tempfile.TemporaryDirectory(dir=self._top) as empty:
            own = [f"--cache-dir={empty}", f"--run-dir={empty}"]
            if subprocess.run([*words, *own], capture_output=True, check=False).returncode:
                return None
        lines = self._told.read_text().splitlines() if self._told.exists() else []
        split = (line.partition(" ") for line in lines)
        return {name.partition("@")[0]: how == "recursive" for how, _, name in split}

    def said(self, conf: bytes) -> tuple[list[str], bool]:
        """The datasets of recursive snapshots, by the rehearsal, and whether it was answered."""
        words = self._words(conf)
        caller = Caller(os.getpid(), tuple(words), math.inf, sanoid=tuple(words[:2]))
        with tempfile.TemporaryDirectory(dir=self._top) as locks:
            asked = Rehearsal(caller, "", Round(Path(locks), Process.of(os.getpid())))
            recursive = sorted(name for name in DATASETS if asked.takes_recursively(name))
            return recursive, not asked.unanswered

    def read(self, conf: bytes) -> dict[str, bool] | None:
        """The same as `really`, by zvmsnap's own reader."""
        try:
            ini = sanoid_conf.parse(conf.decode(errors="surrogateescape"))
        except SanoidConfInvalid:
            return None
        if sanoid_conf.unknown_keys(ini, self._defaults):
            return None
        policies = sanoid_conf.resolve(ini, self._defaults, _below, self._version)
        return {each.path: each.is_recursive for each in policies.values() if each.takes}

    def _words(self, conf: bytes) -> list[str]:
        (self._top / "conf" / "sanoid.conf").write_bytes(conf)
        return ["perl", str(self._sanoid), f"--configdir={self._top}/conf"]


def _below(top: str) -> list[str]:
    return [name for name in DATASETS if name.startswith(f"{top}/")]


def generated(dice: random.Random) -> bytes:
    """A sanoid.conf as people write them, and as they should not."""

    def pick(*choices: str) -> str:
        return dice.choice(choices)

    def value(text: str) -> str:
        quoted = pick(text, text, f'"{text}"', f"'{text}'", f"{text}  ", text.upper())
        return pick(*[quoted] * 6, f"<<EOT\n{text}\nEOT", f"{text} \\")

    def key() -> str:
        name = pick(*["recursive"] * 6, "skip_children", "process_children_only", "autosnap",
                    "use_template", "; recursive", "# recursive")
        choices = ("p", "q", "p , q", "p,q", "q,p") if name == "use_template" else (
            "zfs", "zfs", "yes", "no", "1", "0", "on", "", "zfs yes", "nozfs")
        indent, equals = pick("", "", "  ", "\t"), pick(" = ", "=", " == ", "= ")
        return f"{indent}{name}{equals}{value(pick(*choices))}"

    def section(name: str) -> str:
        title = pick(*[f"[{name}]"] * 8, f"[ {name} ]", f"[{name} ]", f" [{name}] ")
        keys = [key() for _ in range(dice.randint(0, 3))]
        keys.insert(dice.randint(0, len(keys)), "use_template = p")
        return "\n".join([title, *keys, ""])

    names = [pick(*DATASETS) for _ in range(dice.randint(1, 4))]
    parts = [section(name) for name in names]
    parts.insert(dice.randint(0, len(parts)), TEMPLATES)
    if dice.random() < 0.2:
        parts.append("[template_p]\nrecursive = zfs\n")
    text = "".join(parts).encode()
    text = text.replace(b"\n", b"\r\n") if dice.random() < 0.15 else text
    start = dice.choice([b"", b"", b"", b"", b"# f\xfcr die G\xe4ste\n", b"\xef\xbb\xbf", b"\n \n"])
    return start + text


def main(arguments: list[str]) -> int:
    """As the module says."""
    options = dict(each[2:].split("=") for each in arguments if each.startswith("--"))
    sanoid, defaults, *files = [Path(each) for each in arguments if not each.startswith("--")]
    dice = random.Random(int(options.get("seed", "14")))
    confs = {path.name: path.read_bytes() for path in files}
    for number in range(int(options.get("generated", "0"))):
        confs[f"generated {number}"] = generated(dice)
    counts = {"recursive": 0, "alone": 0, "refused": 0, "differs": 0}
    with tempfile.TemporaryDirectory() as top:
        judge = Judge(Path(top), sanoid, defaults)
        for name, conf in confs.items():
            really = judge.really(conf)
            said, answered = judge.said(conf)
            read = judge.read(conf)
            recursive = sorted(dataset for dataset, how in (really or {}).items() if how)
            counts["refused"] += really is None
            counts["recursive"] += len(recursive)
            counts["alone"] += len(really or ()) - len(recursive)
            if said != recursive or answered is (really is None) or read != really:
                counts["differs"] += 1
                print(f"{name}: sanoid {really}, said {said}, read {read}\n{conf!r}")
            if not name.startswith("generated"):
                print(f"{name}: {', '.join(recursive)}")
    print(f"{len(confs)} configurations: {counts}")
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
