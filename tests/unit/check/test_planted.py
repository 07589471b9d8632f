"""Mistakes of an administrator, one by one: each is found, and named as what it is."""

from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.check_scene import VAULT, WEB, CheckedHost, Spoil
from tests.fakes.guest import OTHER
from zvmsnap.check.finding import Colour
from zvmsnap.disks.location import GuestDisks, locate_disks
from zvmsnap.virt.guest import Pause
from zvmsnap.zfs import volume
from zvmsnap.zfs.mounts import DiskLocation

RED, YELLOW = Colour.RED, Colour.YELLOW


def edited(old: str, new: str) -> Spoil:
    return lambda host: host.edit(old, new)


def appended(text: str) -> Spoil:
    return lambda host: host.sanoid_conf.write_text(f"{host.sanoid_conf.read_text()}\n{text}\n")


def units(old: str, new: str) -> Spoil:
    return lambda host: host.units(old, new)


def prop(name: str, key: str, value: str) -> Spoil:
    return lambda host: host.properties[name].__setitem__(key, value)


def user(name: str, key: str, value: str) -> Spoil:
    return lambda host: host.user_properties.append((name, key, value))


def dataset(name: str, **changes: object) -> Spoil:
    def change(host: CheckedHost) -> None:
        host.datasets[name] = replace(host.datasets[name], **changes)  # type: ignore[arg-type]

    return change


def pool(**changes: object) -> Spoil:
    def change(host: CheckedHost) -> None:
        host.pools["tank"] = replace(host.pools["tank"], **changes)  # type: ignore[arg-type]

    return change


def config(text: str) -> Spoil:
    return lambda host: host.config(text)


def without(path: str) -> Spoil:
    return lambda host: (host.root / path).unlink()


def second_disk(host: CheckedHost) -> None:
    """A disk on a dataset with a section of its own."""
    host.dataset("tank/db")
    host.host.known.remove(host.web)
    host.web = host.guest("web", host.web.uuid, WEB, "tank/db")
    host.edit("[template_vm]", "[tank/db]\nuse_template = vm\n[template_vm]")


def disk_elsewhere(host: CheckedHost) -> None:
    """A disk that is in no section."""
    host.dataset("tank/db")
    host.host.known.remove(host.web)
    host.web = host.guest("web", host.web.uuid, WEB, "tank/db")


def unknown_guest(host: CheckedHost) -> None:
    host.dataset("tank/vm/db")
    host.properties["tank/vm/db"]["zvmsnap:keep-memory"] = "24"
    host.guest("db", OTHER, "tank/vm/db")


def two_in_one(host: CheckedHost) -> None:
    host.guest("db", OTHER, WEB)


def child_first(host: CheckedHost) -> None:
    host.sanoid_conf.write_text(f"[{WEB}/data]\nuse_template = vm\n{host.sanoid_conf.read_text()}")


def hook_gone(host: CheckedHost) -> None:
    (host.root / "opt/zvmsnap/hooks/post-snapshot").unlink()


def hook_not_executable(host: CheckedHost) -> None:
    (host.root / "opt/zvmsnap/hooks/post-snapshot").chmod(0o644)


def hook_of_another_version(host: CheckedHost) -> None:
    host.file("opt/zvmsnap/zvmsnap/__init__.py", '__version__ = "0.0.1"\n')


def cron(line: str) -> Spoil:
    return lambda host: host.file("etc/cron.d/backup", f"{line}\n")


def staging_in_the_dataset(host: CheckedHost) -> None:
    text = host.config_file.read_text().replace(host.settings.staging, f"{host.root}/mnt/{WEB}/s")
    host.config_file.write_text(text)


def staging_out_of_reach(host: CheckedHost) -> None:
    host.settings.staging_dir.chmod(0o700)


def vault_in_the_dataset(host: CheckedHost) -> None:
    text = host.config_file.read_text().replace(f"mnt/{VAULT}", f"mnt/{WEB}/v")
    host.config_file.write_text(text)


def other_vault(host: CheckedHost) -> None:
    host.settings.journal_dir.mkdir()
    (host.settings.journal_dir / "vault.id").write_text("another")


def no_block_cloning(host: CheckedHost) -> None:
    host.file("sys/module/zfs/parameters/zfs_bclone_enabled", "0\n")


def no_feature(host: CheckedHost) -> None:
    host.program("usr/sbin/zpool", "echo disabled")


def old_module(host: CheckedHost) -> None:
    host.file("sys/module/zfs/version", "2.2.2-1\n")


def sparse(host: CheckedHost) -> None:
    host.file("etc/libvirt/qemu.conf", 'snapshot_image_format = "sparse"\n')


def apparmor(host: CheckedHost) -> None:
    host.file("sys/module/apparmor/parameters/enabled", "Y\n")
    (host.root / "usr/sbin/apparmor_parser").unlink()


def zrepl(host: CheckedHost) -> None:
    host.program("usr/bin/zrepl")
    host.file("etc/zrepl/zrepl.yml", "jobs: []\n")


def both_daemons(host: CheckedHost) -> None:
    host.program(
        "usr/bin/systemctl",
        'case "$*" in *virtqemud*) printf \'Id=virtqemud.service\\nActiveState=active\\n\\n'
        "Id=libvirtd.service\\nActiveState=active\\n' ;; "
        f"show*) cat {host.root}/units ;; esac",
    )


def io_error(host: CheckedHost) -> None:
    host.web.paused_because = Pause.IO_ERROR


def snapshots(host: CheckedHost) -> None:
    host.web.snapshots = ["before"]


def backup(host: CheckedHost) -> None:
    host.web.job, host.web.kind_of_job = True, "backup"


def held(host: CheckedHost) -> None:
    def located(*seen: Any) -> GuestDisks:
        disks = locate_disks(*seen)
        return replace(disks, locations={"vda": DiskLocation(f"{WEB}/data", "")})

    host.patch.setattr("zvmsnap.check.facts.locate_disks", located)
    host.patch.setattr(volume, "held_by", {f"{WEB}/data": ["data-files"]}.get)


def no_agent(host: CheckedHost) -> None:
    host.web.agent = None
    dataset(WEB, mode="quiesced")(host)


def passed_through(host: CheckedHost) -> None:
    host.web.equipment = "<hostdev mode='subsystem' type='pci'/>"


def scripts(host: CheckedHost) -> None:
    host.config(f'guest_scripts = "{host.root}/guest.d"')
    host.file("guest.d/wbe/pre-freeze", "#!/bin/sh\n").chmod(0o755)


def script_not_executable(host: CheckedHost) -> None:
    host.config(f'guest_scripts = "{host.root}/guest.d"')
    host.file("guest.d/web/pre-freeze", "#!/bin/sh\n")


def everybodys_config(host: CheckedHost) -> None:
    host.config_file.chmod(0o666)


def no_module(host: CheckedHost) -> None:
    host.program("usr/bin/python3", "echo zstandard")


def old_sanoid(host: CheckedHost) -> None:
    host.program("usr/sbin/sanoid", "$::VERSION = '2.0.1';")


def foreign_hook(host: CheckedHost) -> None:
    host.program("opt/mine")
    host.edit("/opt/zvmsnap/hooks/post-snapshot", "/opt/mine")


TEMPLATE = "[template_vm]\n"
# The mistake, the colour, the check that finds it, and a part of what it says.
PLANTED: list[tuple[str, Spoil, Colour, str, str]] = [
    ("no sanoid", without("usr/sbin/sanoid"), RED, "sanoid.missing", "apt install sanoid"),
    ("sanoid 2.0.1", old_sanoid, RED, "sanoid.version", "knows no `recursive = zfs`"),
    ("no sanoid.conf", without("etc/sanoid/sanoid.conf"), RED, "sanoid.conf", "is not there"),
    ("no key", edited(TEMPLATE, f"{TEMPLATE}hello\n"), RED, "sanoid.conf", "'hello'"),
    (
        "unknown template",
        edited("use_template = vm", "use_template = vm,vms"),
        RED,
        "sanoid.template",
        "template vms, which does not exist",
    ),
    (
        "recursive in a template",
        edited(TEMPLATE, f"{TEMPLATE}recursive = zfs\n"),
        RED,
        "sanoid.recursive-in-template",
        f"let the line stand in [{WEB}]",
    ),
    (
        "a key twice",
        edited("\thourly = 24", "\thourly = 24\n\thourly = 2"),
        RED,
        "sanoid.repeated-key",
        "hourly 2 times: the first counts",
    ),
    (
        "a blank behind a value",
        edited("autoprune = yes", "autoprune = yes "),
        RED,
        "sanoid.blank",
        "autoprune = 'yes '",
    ),
    (
        "no such dataset",
        appended("[tank/vm/wbe]\nuse_template = vm"),
        RED,
        "sanoid.no-dataset",
        "there is no dataset tank/vm/wbe",
    ),
    ("child first", child_first, RED, "sanoid.sequence", f"[{WEB}/data] stands before [{WEB}]"),
    ("two instants", second_disk, RED, "sanoid.instants", "different instants (tank/db, tank/vm/"),
    ("a part", disk_elsewhere, RED, "sanoid.part", "not tank/db"),
    ("in no section", unknown_guest, YELLOW, "sanoid.not-snapshotted", "tank/vm/db"),
    (
        "children only",
        edited("recursive = zfs", "recursive = zfs\nprocess_children_only = yes"),
        RED,
        "sanoid.children-only",
        "nothing is taken",
    ),
    (
        "against the property",
        dataset(WEB, recursive="off"),
        RED,
        "sanoid.recursive-property",
        "zfs inherit zvmsnap:recursive tank/vm/web",
    ),
    (
        "syncoid's snapshots",
        cron("0 3 * * * root syncoid tank nas:tank"),
        YELLOW,
        "sanoid.sync-snap",
        "add --no-sync-snap",
    ),
    (
        "sanoid by cron, too",
        cron("*/15 * * * * root /usr/sbin/sanoid --cron"),
        RED,
        "sanoid.twice",
        "and so does sanoid.timer",
    ),
    (
        "another snapshotter",
        lambda host: host.program("usr/sbin/zfs-auto-snapshot"),
        YELLOW,
        "sanoid.second",
        "without the hooks",
    ),
    ("zrepl without hooks", zrepl, YELLOW, "sanoid.second", "names no hook of zvmsnap"),
    (
        "no pre",
        edited("\tpre_snapshot_script", "\t# pre_snapshot_script"),
        RED,
        "hooks.no-pre-snapshot",
        "points have no RAM",
    ),
    (
        "no pruning",
        edited("\tpruning_script", "\t# pruning_script"),
        YELLOW,
        "hooks.no-pruning",
        "RAM images stay",
    ),
    ("hook gone", hook_gone, RED, "hooks.missing", "/opt/zvmsnap/hooks/post-snapshot"),
    ("not executable", hook_not_executable, RED, "hooks.not-executable", "chmod +x /opt/zvmsnap"),
    ("other version", hook_of_another_version, YELLOW, "hooks.version", "is zvmsnap 0.0.1"),
    ("another's hook", foreign_hook, YELLOW, "hooks.other-post-snapshot", "/opt/mine is no hook"),
    (
        "a comment behind a hook",
        edited("hooks/pruning", "hooks/pruning # RAM, too"),
        RED,
        "hooks.comment",
        "it is no comment",
    ),
    (
        "a shell",
        edited("hooks/pruning", 'hooks/pruning "$HOME"'),
        YELLOW,
        "hooks.shell",
        "hides from the hook that sanoid died",
    ),
    (
        "script_timeout",
        edited("script_timeout = 0", "script_timeout = 300"),
        RED,
        "hooks.script-timeout",
        "script_timeout = 300",
    ),
    (
        "no script_timeout",
        edited("\tscript_timeout = 0", ""),
        RED,
        "hooks.script-timeout",
        "script_timeout = 5",
    ),
    (
        "post not forced",
        edited("force_post_snapshot_script = yes", "force_post_snapshot_script = no"),
        RED,
        "hooks.force-post",
        "post runs for none",
    ),
    (
        "no inconsistent snapshots",
        edited("no_inconsistent_snapshot = no", "no_inconsistent_snapshot = yes"),
        RED,
        "hooks.no-inconsistent",
        "no snapshot, and no post",
    ),
    ("staging snapshotted", staging_in_the_dataset, RED, "storage.staging", f"is on {WEB}"),
    ("staging closed", staging_out_of_reach, RED, "storage.staging", "chmod o+x"),
    (
        "staging too small",
        config("[limits]\noverlay_room_mib = 1_000_000_000"),
        RED,
        "storage.staging-room",
        "web may need",
    ),
    ("vault with disks", vault_in_the_dataset, RED, "storage.vault", "holds disks of web"),
    ("another vault", other_vault, RED, "storage.vault", "is not the vault that was used so far"),
    (
        "vault not mounted",
        dataset(VAULT, mounted=False),
        RED,
        "storage.vault-unmounted",
        f"zfs mount {VAULT}",
    ),
    ("recordsize", prop(VAULT, "recordsize", "131072"), YELLOW, "storage.recordsize", "128K"),
    ("no compression", prop(VAULT, "compression", "off"), YELLOW, "storage.compression", "zstd"),
    ("not encrypted", dataset(WEB, encrypted=True), YELLOW, "storage.vault-encryption", WEB),
    ("no block cloning", no_block_cloning, YELLOW, "storage.block-cloning", "is off"),
    ("no feature", no_feature, YELLOW, "storage.block-cloning", "zpool set feature@block_cloning"),
    (
        "RAM for ever",
        prop(WEB, "zvmsnap:keep-memory", "all"),
        YELLOW,
        "storage.keep-memory",
        "41 images",
    ),
    ("two guests in one", two_in_one, YELLOW, "storage.shared", "holds disks of db, web"),
    (
        "libvirt away",
        lambda host: setattr(host.host, "reachable", False),
        RED,
        "libvirt.unanswered",
        "qemu:///system: no",
    ),
    ("sparse images", sparse, RED, "libvirt.image-format", 'set it to "raw"'),
    ("no apparmor_parser", apparmor, RED, "libvirt.apparmor", "apt install apparmor"),
    ("two daemons", both_daemons, RED, "libvirt.daemons", "both active"),
    ("no mode", dataset(WEB, mode="memry"), RED, "guest.mode", "is memory meant?"),
    ("out of reach", passed_through, YELLOW, "guest.level", "a passed-through PCI device"),
    (
        "no agent",
        no_agent,
        YELLOW,
        "guest.level",
        "it has no channel for an agent",
    ),
    ("I/O error", io_error, RED, "guest.io-error", "virsh resume web"),
    ("backup", backup, YELLOW, "guest.busy", "backup"),
    ("libvirt's snapshots", snapshots, YELLOW, "guest.snapshots", "before"),
    ("the host's LVM", held, RED, "guest.held", "vda: this host has it open itself, as data-files"),
    ("suspended pool", pool(health="SUSPENDED"), RED, "pool.away", "zpool clear tank"),
    ("degraded pool", pool(health="DEGRADED"), YELLOW, "pool.degraded", "is DEGRADED"),
    ("full pool", pool(full_percent=97), RED, "pool.full", "97 % full"),
    ("programs and module", old_module, YELLOW, "zfs.versions", "2.2.2-1"),
    (
        "destination gone",
        config('[[destination]]\ntarget = "usb/away"'),
        RED,
        "destination.missing",
        "zfs create -u -o canmount=off usb/away",
    ),
    (
        "no mbuffer",
        config('[[destination]]\ntarget = "nas:usb/away"\nbwlimit = "50M"'),
        RED,
        "destination.program",
        "apt install mbuffer",
    ),
    (
        "guest of a destination",
        config('[[destination]]\ntarget = "nas:usb/away"\nguests = ["wbe"]'),
        YELLOW,
        "destination.guest",
        "guest wbe",
    ),
    (
        "recover off",
        units("UnitFileState=enabled\nExecStart", "UnitFileState=disabled\nExecStart"),
        RED,
        "systemd.recover",
        "systemctl enable zvmsnap-recover.service",
    ),
    (
        "recover not installed",
        units("LoadState=loaded\nUnitFileState=enabled\nExec", "LoadState=not-found\nExec"),
        RED,
        "systemd.recover",
        "is not installed",
    ),
    ("recover of nothing", without("usr/bin/zvmsnap"), RED, "systemd.recover-program", "/usr/bin/"),
    ("timeout", units("USec=infinity", "USec=5min"), RED, "systemd.timeout", "ended after 5min"),
    ("timer off", units("=active", "=inactive"), YELLOW, "systemd.timer", "enable --now"),
    ("local time", units("TZ=UTC", "LANG=C"), YELLOW, "systemd.time-zone", "TZ=UTC"),
    ("misspelt key", config("valut = '/x'"), RED, "config.invalid", "valut"),
    (
        "misspelt property",
        user(WEB, "zvmsnap:mdoe", "crash"),
        YELLOW,
        "config.property",
        "is zvmsnap:mode meant?",
    ),
    ("misspelt guest", scripts, YELLOW, "config.guest-scripts", "web may be meant"),
    ("script", script_not_executable, RED, "config.guest-scripts", "chmod +x"),
    ("everybody's", everybodys_config, RED, "config.permissions", "chmod go-w"),
    ("no rsync", without("usr/bin/rsync"), RED, "own.program", "apt install rsync"),
    ("no zstandard", no_module, RED, "own.module", "apt install python3-zstandard"),
]


@pytest.mark.parametrize(
    ("spoil", "colour", "check", "says"),
    [case[1:] for case in PLANTED],
    ids=[case[0] for case in PLANTED],
)
def test_planted(checked: CheckedHost, spoil: Spoil, colour: Colour, check: str, says: str) -> None:
    spoil(checked)
    found = [each for each in checked.trouble() if each.check == check]
    assert [each.colour for each in found] == [colour] * len(found)
    assert found, [each.line() for each in checked.findings()]
    lines = [each.line() for each in found]
    assert any(says.lower() in line.lower() for line in lines), lines
