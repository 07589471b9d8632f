"""A machine that ssh reaches: a stand-in for ssh runs its words in a shell, with programs of it.

What these say is in `said`, which a test changes: by the words of the command line.
"""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = "usb/away"
PROPERTIES = {
    "zvmsnap:vault": "",
    "mountpoint": "/usb/away",
    "mounted": "yes",
    "available": str(1 << 40),
    "used": str(1 << 39),
    "encryption": "off",
    "keystatus": "-",
}
PERMISSIONS = "create,mount,canmount,readonly,receive,send,hold,release,rename,clone,promote"

_SSH = """\
#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "$1: $2" >> {root}/asked
shift
[ -e {root}/down ] && {{ echo "ssh: connect to host nas port 22: No route to host" >&2; exit 255; }}
[ -e {root}/silent ] && exec sleep 60
PATH={root}/bin:/usr/bin:/bin exec /bin/sh -c "$*"
"""
_PROGRAM = """\
#!{python}
import json, sys
said = json.load(open("{root}/said.json"))
words = [sys.argv[0].rpartition("/")[2], *sys.argv[1:]]
if words[:2] == ["zfs", "get"]:
    *_, names, root = words
    if root not in said["properties"]:
        sys.exit(f"cannot open '{{root}}': dataset does not exist")
    own = said["properties"][root]
    for name in names.split(","):
        sys.stdout.write("%s\\t%s\\t-\\t%s\\n" % (name, root, own.get(name, "-")))
    sys.exit()
key = " ".join(words)
if key not in said:
    sys.exit(127)
print(said[key], end="")
"""


class FakeNas:
    """The machine `nas`; its root is ROOT, and all is well."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        bin_there, bin_here = root / "bin", root / "here"
        for folder in (bin_there, bin_here):
            folder.mkdir(parents=True)
        _program(bin_here / "ssh", _SSH.format(root=root))
        for name in ("zfs", "zpool", "id", "rsync"):
            _program(bin_there / name, _PROGRAM.format(root=root, python=sys.executable))
        patch.setenv("PATH", f"{bin_here}:{os.environ['PATH']}")
        self.vault = root / "vault"
        self.vault.mkdir()
        self.properties = {ROOT: PROPERTIES | {"zvmsnap:vault": str(self.vault)}}
        self.said = {
            "zfs version": "zfs-2.3.2-2\nzfs-kmod-2.3.2-2\n",
            "id": "uid=1001(offsite) gid=1001(offsite) groupes=1001(offsite),34(backup)\n",
            "rsync --version": "rsync  version 3.2.7\n",
        }
        self.pool()
        self.allow(f"\tuser offsite {PERMISSIONS}")
        self.write()

    def pool(self, **changes: str) -> None:
        """Say this of its pool; `block_cloning` and `encryption` are features."""
        own = {"health": "ONLINE", "capacity": "50", "block_cloning": "active"}
        own |= {"encryption": "enabled", **changes}
        features = {each: f"feature@{each}" for each in ("block_cloning", "encryption")}
        lines = [f"{features.get(name, name)}\t{value}\n" for name, value in own.items()]
        self.said["zpool get -Hpo property,value all usb"] = "".join(lines)

    def allow(self, *lines: str, kind: str = "Local+Descendent permissions:") -> None:
        """Say that these permissions were delegated."""
        header = f"---- Permissions on {ROOT} {'-' * 40}"
        self.said[f"zfs allow {ROOT}"] = "\n".join([header, kind, *lines, ""])

    def write(self) -> None:
        """Let its programs say what is said now."""
        content = self.said | {"properties": self.properties}
        (self.root / "said.json").write_text(json.dumps(content))

    @property
    def asked(self) -> list[str]:
        """The destinations and commands that ssh was given."""
        return (self.root / "asked").read_text().splitlines()


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
