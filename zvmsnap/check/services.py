"""systemd: does sanoid run, does nothing end it early, and who brings guests back after a crash?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zvmsnap.check.facts import Facts
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.check.sanoid import by_cron
from zvmsnap.common.safe_files import write_atomic

RECOVER = "zvmsnap-recover.service"
_SANOID = "sanoid.service"
_TIMER = "sanoid.timer"
_UNITS = (RECOVER, _SANOID, _TIMER)
_ASKED = (
    "Id",
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "TimeoutStartUSec",
    "RuntimeMaxUSec",
    "Result",
    "ExecStart",
    "Environment",
)
_DROP_IN = "/etc/systemd/system/sanoid.service.d/zvmsnap.conf"
_NO_LIMIT = ("infinity", "")


def _units(facts: Facts) -> dict[str, dict[str, str]] | None:
    """What systemd says of the units, by name; None if this host has no systemd, or it is silent.

    Of a unit that does not exist it says so (LoadState=not-found).
    """
    if not facts.path("/run/systemd/system").is_dir():
        return None
    said = facts.ask("systemctl", "show", f"--property={','.join(_ASKED)}", *_UNITS)
    if said is None:
        return None
    units = {}
    for block in said.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        units[values.get("Id", "")] = values
    return units


def systemd(facts: Facts) -> Iterator[Finding]:
    """All that is asked of it, in one process."""
    units = _units(facts)
    if units is None:
        text = "cannot be asked: whether sanoid is started, and guests are brought back at boot"
        yield green("systemd.absent", "systemd", f"{text}, is not known")
        return
    yield from _recover(facts, units.get(RECOVER, {}))
    yield from _sanoid(facts, units.get(_SANOID, {}))
    yield from _timer(facts, units.get(_TIMER, {}))


def _recover(facts: Facts, unit: dict[str, str]) -> Iterator[Finding]:
    why = "after a power cut nobody brings guests back from overlays before libvirt starts them"
    if unit.get("LoadState") != "loaded":
        mend = f"install systemd/{RECOVER}, and systemctl enable {RECOVER}"
        yield red("systemd.recover", RECOVER, f"is not installed: {why}", mend)
        return
    program = _program(unit.get("ExecStart", ""))
    if program and not facts.path(program).exists():
        text = f"starts {program}, which does not exist: {why}"
        mend = f"systemctl edit --full {RECOVER}, or install the command there"
        yield red("systemd.recover-program", RECOVER, text, mend)
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "alias"):

        def enable() -> str:
            if facts.ask("systemctl", "enable", RECOVER) is None:
                return f"{RECOVER} could not be enabled"
            return f"{RECOVER} is enabled now"

        text = f"is not enabled: {why}"
        yield red("systemd.recover", RECOVER, text, f"systemctl enable {RECOVER}", enable)
    else:
        yield green("systemd.recover", RECOVER, "brings guests back at boot")


def _program(exec_start: str) -> str:
    """Of `{ path=/usr/bin/x ; argv[]=... }`."""
    return exec_start.partition("path=")[2].partition(" ")[0]


def _sanoid(facts: Facts, unit: dict[str, str]) -> Iterator[Finding]:
    if unit.get("LoadState") != "loaded":
        return
    for key in ("TimeoutStartUSec", "RuntimeMaxUSec"):
        value = unit.get(key, "")
        # RuntimeMaxSec does not count for a unit of type oneshot.
        if value not in _NO_LIMIT and key == "TimeoutStartUSec":
            drop_in = facts.path(_DROP_IN)

            def lift(drop_in: Path = drop_in) -> str:
                drop_in.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(drop_in, b"[Service]\nTimeoutStartSec=infinity\n")
                drop_in.chmod(0o644)
                facts.ask("systemctl", "daemon-reload")
                return f"{drop_in} lifts the limit"

            text = f"is ended after {value}, whatever the hooks do: guests stay on their overlays"
            mend = f"write [Service] TimeoutStartSec=infinity into {_DROP_IN}"
            yield red("systemd.timeout", _SANOID, text, mend, lift)
    if unit.get("Result", "success") not in ("success", ""):
        text = f"has failed ({unit['Result']})"
        yield yellow("systemd.sanoid-failed", _SANOID, text, "journalctl -u sanoid.service")
    if "TZ=UTC" not in unit.get("Environment", "") and unit.get("Environment") is not None:
        text = "does not set TZ=UTC: when clocks are set back, names of snapshots come twice"
        mend = "systemctl edit sanoid.service: [Service] Environment=TZ=UTC"
        yield yellow("systemd.time-zone", _SANOID, text, mend)


def _timer(facts: Facts, unit: dict[str, str]) -> Iterator[Finding]:
    if facts.sanoid is None or by_cron(facts):
        return
    if unit.get("ActiveState") != "active":
        text = f"is not active ({unit.get('LoadState', 'unknown')}): nobody starts sanoid"
        mend = f"systemctl enable --now {_TIMER}"
        yield yellow("systemd.timer", _TIMER, text, mend)
    else:
        yield green("systemd.timer", _TIMER, "starts sanoid")


def watchdog(facts: Facts) -> Iterator[Finding]:
    """Can the watchdog outlive sanoid's unit?"""
    has_systemd = facts.path("/run/systemd/system").is_dir()
    if has_systemd and facts.program("systemd-run") is None:
        text = "is not there: systemd ends the watchdog together with sanoid"
        yield red("systemd.watchdog", "systemd-run", text, "install the package systemd")


CHECKS = (systemd, watchdog)
