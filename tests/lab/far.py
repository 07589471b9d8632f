"""A second host in the lab: another network namespace, its own sshd, user and pool.

It shares the kernel, and so libvirt, with the first: what is started there runs beside what runs
here. Its zvmsnap has a configuration of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import quote
from typing import Any

import back
import readme
import scenario

from labkit.api import Completed, Lab

USER = "offsite"
HOST = "nas"
ROOT = "backup/offsite"
VAULT = "/backup/vault"
DESTINATION = f"{USER}@{HOST}:{ROOT}"
CONFIG = "/etc/zvmsnap/far.toml"
ADDRESS = "10.77.0.2"

_SSHD = f"""\
ListenAddress {ADDRESS}
HostKey /srv/far/host_key
PidFile /run/far-sshd.pid
PasswordAuthentication no
UsePAM yes
"""

_NOT_NETWORKDS = """\
[Match]
Name=near0

[Link]
Unmanaged=yes
"""


def built(lab: Lab) -> None:
    """The guest `web` has its first point; the second host is there, as docs/how-to makes it."""
    scenario.stage(lab, "far", scenario.taken, make)


def make(lab: Lab) -> None:
    """Make the second host."""
    lab.run(
        "mkdir -p /srv/far && ssh-keygen -q -t ed25519 -N '' -f /srv/far/host_key && "
        "truncate -s 6G /srv/far/disk && zpool create backup /srv/far/disk"
    )
    for command in readme.commands("On the other machine, once"):
        lab.run(command)
    lab.put("/srv/far/sshd_config", _SSHD)
    lab.put("/etc/systemd/network/05-near.network", _NOT_NETWORKDS)
    lab.run(f"networkctl reload && echo '{ADDRESS} {HOST}' >> /etc/hosts")
    connect(lab)
    lab.run(
        "mkdir -p -m 700 /root/.ssh && cd /root/.ssh && "
        "ssh-keygen -q -t ed25519 -N '' -f id_ed25519 && "
        f"install -d -m 700 -o {USER} /home/{USER}/.ssh && "
        f"install -m 600 -o {USER} id_ed25519.pub /home/{USER}/.ssh/authorized_keys && "
        f"echo {HOST} $(cat /srv/far/host_key.pub) > /root/.ssh/known_hosts && "
        f"until ssh -o BatchMode=yes {USER}@{HOST} true; do sleep 0.5; done"
    )
    lab.put(CONFIG, f'vault = "{VAULT}"\njournal = "/var/lib/zvmsnap-far/journal"\n')


def connect(lab: Lab) -> None:
    """Make the other host's network, which a boot forgets, and start its sshd."""
    lab.run(
        "ip netns add far && ip link add near0 type veth peer name far0 && "
        "ip link set far0 netns far && ip addr add 10.77.0.1/24 dev near0 && "
        f"ip link set near0 up && ip -n far addr add {ADDRESS}/24 dev far0 && "
        "ip -n far link set far0 up && ip -n far link set lo up"
    )
    start_sshd(lab)


def start_sshd(lab: Lab) -> None:
    """In its own namespace."""
    lab.run("mkdir -p /run/sshd && ip netns exec far /usr/sbin/sshd -f /srv/far/sshd_config")


def stop_sshd(lab: Lab) -> None:
    """Its connections end too."""
    lab.run("kill $(cat /run/far-sshd.pid); pkill -f '[s]shd.*offsite'", check=False)
    lab.run("while ip netns exec far ss -Hltn sport = 22 | grep -q .; do sleep 0.1; done")


def send(lab: Lab, *words: str, status: int = 0) -> Mapping[str, Any]:
    """`zvmsnap send` of one guest or dataset; the last word is the destination."""
    done = back.zvmsnap(lab, "send", "--json", *words, status=status)
    said: Mapping[str, Any]
    (said,) = json.loads(done.stdout)["sent"]
    (unit,) = said["units"]
    report: Mapping[str, Any] = unit
    return report


def there(lab: Lab, *words: str, status: int = 0) -> Completed:
    """A command of ours on the second host."""
    command = " ".join(["zvmsnap", "--config", CONFIG, *map(quote, words)])
    done = lab.run(command, check=False, timeout_s=scenario.ROUND_LIMIT_S)
    assert "Traceback" not in done.stderr, done
    assert done.returncode == status, done
    return done


def points(lab: Lab) -> list[dict[str, Any]]:
    """The points of the second host, as it lists them itself."""
    found: list[dict[str, Any]] = json.loads(there(lab, "list", "--json").stdout)["points"]
    return found


def guids(lab: Lab, dataset: str) -> list[int]:
    """Of a dataset's snapshots, oldest first."""
    return list(scenario.snapshots(lab, dataset).values())


def burn(lab: Lab) -> None:
    """Nothing of the guest is left on the first host."""
    lab.run("virsh destroy web; virsh undefine web")
    # A volume may be busy for a moment still.
    lab.run("until zfs destroy -r tank/vm; do sleep 1; done", timeout_s=scenario.ROUND_LIMIT_S)
    lab.run(f"rm -rf {scenario.VAULT}/* {scenario.VAULT}/.zvmsnap-vault {scenario.JOURNAL}")
