"""`zvmsnap check`: nothing on a host that is well, and each of the mistakes that were planted.

Mistakes that do not hide each other are planted together: a lab is not made for each.
"""

from __future__ import annotations

import json
import time

import far
import installed
import pytest
import scenario
from scenario import CONFIG, EXAMPLE_CONF, SANOID_CONF, STAGING, WEB
from test_hanging import suspend, suspended_pool

from labkit.api import Lab

# A guard against a hang: far above what it takes on a loaded machine.
SOON_S = 120.0
HOOK = "/opt/zvmsnap/hooks/post-snapshot"

UNREADABLE = {"sanoid.conf": "hello\n"}
# What is written instead of what, in sanoid.conf.
EDITS = {
    "hooks.script-timeout": ("script_timeout = 0", "script_timeout = 300"),
    "hooks.force-post": ("script = yes", "script = no"),
    "sanoid.blank": ("autoprune = yes", "autoprune = yes "),
    "hooks.no-pruning": ("\tpruning_script", "\t# pruning_script"),
    "hooks.missing": (HOOK, "/opt/zvmsnap/hooks/post-snapsot"),
    "hooks.comment": ("hooks/pre-snapshot", "hooks/pre-snapshot # RAM"),
    "sanoid.template": ("use_template = vm", "use_template = vm,vms"),
    "sanoid.repeated-key": ("\thourly = 24", "\thourly = 24\n\thourly = 23"),
    "sanoid.recursive-in-template": ("[template_vm]", "[template_vm]\nrecursive = zfs"),
    "sanoid.no-dataset": ("[template_vm]", "[tank/vm/wbe]\nuse_template = vm\n\n[template_vm]"),
}
APART = {
    "sanoid.instants": ("\trecursive = zfs", f"[{WEB.top}/data]\n\tuse_template = vm"),
    "hooks.no-inconsistent": ("inconsistent_snapshot = no", "inconsistent_snapshot = yes"),
    "hooks.not-executable": (HOOK, "/root/post-snapshot"),
}
# Each mistake of the host by the command that makes it, and the one that undoes it.
HOST = {
    "storage.recordsize": (
        "zfs set recordsize=128K cheap/vault", "zfs set recordsize=16K cheap/vault"),
    "storage.compression": (
        "zfs set compression=off cheap/vault", "zfs set compression=zstd cheap/vault"),
    "storage.keep-memory": (
        f"zfs set zvmsnap:keep-memory=all {WEB.top}", f"zfs set zvmsnap:keep-memory=24 {WEB.top}"),
    "config.property": (
        f"zfs set zvmsnap:mdoe=crash {WEB.top}", f"zfs inherit zvmsnap:mdoe {WEB.top}"),
    "sanoid.recursive-property": (
        f"zfs set zvmsnap:recursive=off {WEB.top}", f"zfs inherit zvmsnap:recursive {WEB.top}"),
    "sanoid.sync-snap": (
        "echo '1 3 * * * root syncoid tank nas:tank' > /etc/cron.d/away", "rm /etc/cron.d/away"),
    "sanoid.twice": (
        "echo '*/15 * * * * root sanoid --cron' > /etc/cron.d/snapshots",
        "rm /etc/cron.d/snapshots"),
    "systemd.recover": (
        f"systemctl disable {installed.RECOVER}", f"systemctl enable {installed.RECOVER}"),
    "systemd.timeout": (
        "install -d /etc/systemd/system/sanoid.service.d && printf '[Service]\\n"
        "TimeoutStartSec=5min\\n' > /etc/systemd/system/sanoid.service.d/limit.conf && "
        "systemctl daemon-reload",
        "rm -r /etc/systemd/system/sanoid.service.d && systemctl daemon-reload"),
    "storage.staging": (f"install -d -m 700 {STAGING}", f"chmod 711 {STAGING}"),
    "libvirt.image-format": (
        "cp -p /etc/libvirt/qemu.conf /root && "
        "echo 'snapshot_image_format = \"sparse\"' >> /etc/libvirt/qemu.conf",
        "cp -p /root/qemu.conf /etc/libvirt/"),
    "config.permissions": (f"chmod 666 {CONFIG}", f"chmod 644 {CONFIG}"),
    "storage.block-cloning": (
        "echo 0 > /sys/module/zfs/parameters/zfs_bclone_enabled",
        "echo 1 > /sys/module/zfs/parameters/zfs_bclone_enabled"),
    "config.guest-scripts": (
        "install -D -m 755 /bin/true /etc/zvmsnap/guest.d/wbe/pre-freeze",
        "rm -r /etc/zvmsnap/guest.d"),
    "destination.missing": (
        "install -d /etc/zvmsnap/conf.d && printf '[[destination]]\\ntarget = \"usb/away\"\\n' "
        "> /etc/zvmsnap/conf.d/away.toml",
        "rm -r /etc/zvmsnap/conf.d"),
}
GUEST = {
    "guest.level": ("virsh suspend web", "virsh resume web"),
    # As LVM does with the volume group of a guest.
    "guest.held": (
        f"dmsetup create data-files --table '0 8 linear {WEB.disks['vdb']} 0'",
        "dmsetup remove data-files"),
    "systemd.timer": ("systemctl stop sanoid.timer", "systemctl start sanoid.timer"),
    "storage.vault-unmounted": ("zfs unmount cheap/vault", "zfs mount cheap/vault"),
}
# Of a destination, which is the second host of the lab.
NAS_TOML = "/etc/zvmsnap/conf.d/nas.toml"
BASHRC = f"/home/{far.USER}/.bashrc"
AWAY = {
    "destination.vault": (f"chown root: {far.VAULT}", f"chown {far.USER}: {far.VAULT}"),
    "destination.allow": (
        f"zfs unallow {far.USER} receive {far.ROOT}", f"zfs allow {far.USER} receive {far.ROOT}"),
    "destination.full": (
        f"zfs set quota=$(( $(zfs get -Hpo value used {far.ROOT}) + 1024 )) {far.ROOT}",
        f"zfs set quota=none {far.ROOT}"),
    "destination.rsync": ("mv /usr/bin/rsync /root/rsync", "mv /root/rsync /usr/bin/rsync"),
    "destination.block-cloning": HOST["storage.block-cloning"],
    "destination.keep-memory": (
        f"sed -i /keep_memory/d {NAS_TOML}", f"echo 'keep_memory = 7' >> {NAS_TOML}"),
}
# Each of these hides all others.
AWAY_ALONE = {
    "destination.missing": (
        f"zfs rename {far.ROOT} {far.ROOT}2", f"zfs rename {far.ROOT}2 {far.ROOT}"),
    # Debian 13 has zfs in /usr/bin, too.
    "destination.zfs": (
        f"cp -p {BASHRC} {BASHRC}.kept && echo PATH=/usr/local/bin > {BASHRC}",
        f"mv {BASHRC}.kept {BASHRC}"),
}
MODES = {
    "guest.mode": (f"zfs set zvmsnap:mode=memry {WEB.top}", f"zfs inherit zvmsnap:mode {WEB.top}"),
    "config.invalid": (
        "install -d /etc/zvmsnap/conf.d && echo 'valut = \"/x\"' > /etc/zvmsnap/conf.d/a.toml",
        "rm -r /etc/zvmsnap/conf.d"),
}


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    installed.well(lab_session)
    return lab_session


def trouble(lab: Lab) -> dict[str, str]:
    """What is not green: the names of checks, and what they say."""
    begun_s = time.monotonic()
    done = lab.run("zvmsnap check --json", check=False, timeout_s=scenario.ROUND_LIMIT_S)
    assert "Traceback" not in done.stderr, done
    said = json.loads(done.stdout)
    assert done.returncode == ["green", "yellow", "red"].index(said["colour"]), done
    found = {
        each["check"]: f"{each['subject']}: {each['text']}"
        for each in said["findings"]
        if each["colour"] != "green"
    }
    print(f"{time.monotonic() - begun_s:.0f} s: {found}")
    return found


def planted(lab: Lab, mistakes: dict[str, tuple[str, str]]) -> set[str]:
    """What is not found of these mistakes; they are undone."""
    for make, _ in mistakes.values():
        lab.run(make)
    try:
        return mistakes.keys() - trouble(lab).keys()
    finally:
        for _, undo in mistakes.values():
            lab.run(undo)


def edited(lab: Lab, edits: dict[str, tuple[str, str]]) -> set[str]:
    """What is not found of these mistakes in sanoid.conf."""
    text = EXAMPLE_CONF
    for old, new in edits.values():
        assert old in text
        text = text.replace(old, new)
    lab.put(SANOID_CONF, text)
    try:
        return edits.keys() - trouble(lab).keys()
    finally:
        lab.put(SANOID_CONF, EXAMPLE_CONF)


@pytest.mark.whole
def test_each_mistake_and_nothing_else(lab: Lab) -> None:
    assert trouble(lab) == {}
    lab.put("/root/post-snapshot", "#!/bin/sh\n", mode=0o644)
    missed = edited(lab, EDITS) | edited(lab, APART)
    lab.put(SANOID_CONF, UNREADABLE["sanoid.conf"])
    missed |= UNREADABLE.keys() - trouble(lab).keys()
    lab.put(SANOID_CONF, EXAMPLE_CONF)
    for mistakes in (HOST, GUEST, MODES):
        missed |= planted(lab, mistakes)
    assert missed == set()
    assert len({*EDITS, *APART, *UNREADABLE, *HOST, *GUEST, *MODES}) >= 30
    assert trouble(lab) == {}
    scenario.counts_on(lab, "web")


@pytest.mark.whole
def test_a_qemu_that_hangs_is_one_finding(lab: Lab) -> None:
    pid = lab.run("cat /run/libvirt/qemu/web.pid").stdout.strip()
    lab.run(f"kill -STOP {pid}")
    begun_s = time.monotonic()
    try:
        assert trouble(lab).keys() == {"guest.unanswered"}
    finally:
        lab.run(f"kill -CONT {pid}")
    assert time.monotonic() - begun_s < SOON_S
    assert trouble(lab) == {}


@pytest.mark.whole
def test_a_suspended_pool_is_one_finding(lab: Lab) -> None:
    with suspended_pool(lab):
        suspend(lab)
        begun_s = time.monotonic()
        assert trouble(lab).keys() == {"pool.away"}
        assert time.monotonic() - begun_s < SOON_S


@pytest.fixture
def with_nas(lab_session: Lab) -> Lab:
    far.built(lab_session)
    text = f'[[destination]]\ntarget = "{far.DESTINATION}"\nkeep_memory = 7\n'
    # In emulation its user's manager takes longer to start than a machine has to answer.
    lab_session.run(f"install -d /etc/zvmsnap/conf.d && loginctl enable-linger {far.USER}")
    lab_session.put(NAS_TOML, text)
    return lab_session


def away(lab: Lab) -> set[str]:
    """What is found of destinations."""
    return {name for name in trouble(lab) if name.startswith("destination.")}


@pytest.mark.whole
def test_each_mistake_at_a_destination(with_nas: Lab) -> None:
    lab = with_nas
    assert away(lab) == set()
    assert planted(lab, AWAY) == set()
    for name, mistake in AWAY_ALONE.items():
        assert planted(lab, {name: mistake}) == set()
    assert away(lab) == set()
    # A send asks for the same, and works.
    far.send(lab, "web", far.DESTINATION)
    assert away(lab) == set()


@pytest.mark.whole
def test_destinations_that_are_away_are_not_waited_for_one_by_one(with_nas: Lab) -> None:
    lab = with_nas
    far.stop_sshd(lab)
    gone = [f"{far.USER}@10.77.0.{number}:usb/away" for number in range(11, 16)]
    text = "".join(f'[[destination]]\ntarget = "{each}"\nkeep_memory = 7\n' for each in gone)
    lab.put("/etc/zvmsnap/conf.d/gone.toml", text)
    begun_s = time.monotonic()
    try:
        done = lab.run("zvmsnap check --json", check=False, timeout_s=scenario.ROUND_LIMIT_S)
    finally:
        far.start_sshd(lab)
        lab.run("rm /etc/zvmsnap/conf.d/gone.toml")
    assert time.monotonic() - begun_s < SOON_S
    found = {
        each["subject"]
        for each in json.loads(done.stdout)["findings"]
        if each["check"] == "destination.unreachable"
    }
    assert found == {far.DESTINATION, *gone}
    assert away(lab) == set()


@pytest.mark.whole
def test_what_is_mended(lab: Lab) -> None:
    mistakes = ("systemd.recover", "systemd.timeout", "storage.staging", "storage.recordsize")
    for name in mistakes:
        lab.run(HOST[name][0])
    assert trouble(lab).keys() == {*mistakes}
    done = lab.run("zvmsnap check --fix", timeout_s=scenario.ROUND_LIMIT_S)
    assert done.stdout.count("fixed: ") == len(mistakes), done
    assert trouble(lab) == {}
