"""The recipes of docs/how-to, word for word: their commands, on a terminal, answered yes."""

from __future__ import annotations

from shlex import quote

import back
import far
import pytest
import readme
import scenario
from scenario import WEB

from labkit import guests
from labkit.api import Completed, Lab


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    return lab_session


def typed(lab: Lab, command: str) -> Completed:
    """Run it on a terminal; what is asked is answered with yes."""
    done = lab.run(
        f"printf 'y\\n' | script -qec {quote(command)} /dev/null",
        check=False,
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    assert done.returncode == 0, (command, done)
    assert "Traceback" not in done.stdout, done
    print(f"$ {command}\n{done.stdout}")
    return done


@pytest.mark.whole
def test_get_last_nights_machine_back(lab: Lab) -> None:
    scenario.configured(lab)
    lab.set_clock("2026-11-20T03:00:00+00:00")
    scenario.take(lab)
    lab.set_clock("2026-11-21T09:30:00+00:00")
    scenario.take(lab)
    (name,) = [n for n in scenario.snapshots(lab, WEB.top) if "2026-11-20" in n and "hourly" in n]
    stored = back.stored_count(lab, name)
    commands = readme.commands("Get last night's machine back")
    assert len(commands) == 5
    for command in commands[:3]:
        typed(lab, command)
    last = back.assert_jumped_to(lab, stored)
    # All but the second at which the safety point was taken is as it stands there.
    said = commands[4].split()[-1]
    found = back.safety_point(lab)
    assert said.rpartition(":")[0].partition("_09")[0] == found.partition("_09")[0]
    typed(lab, commands[3])
    typed(lab, commands[4].replace(said, found))
    scenario.wait_until("it jumps back", lambda: len(back.jumps(lab)) == 2)
    assert back.jumps(lab)[-1][1] == last + 1
    scenario.counts_on(lab)


@pytest.mark.whole
def test_offsite_every_night_and_the_host_burns_down(lab: Lab) -> None:
    far.built(lab)
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    commands = readme.commands("Offsite every night")[far.ON_THE_OTHER_SIDE :]
    assert [command.split()[0] for command in commands] == [
        *["zvmsnap"] * 3, "cp", "systemctl", "zvmsnap"
    ]
    for command in commands[:3]:
        said = typed(lab, command)
    assert "memory" in said.stdout
    scenario.configure(lab, f'[[destination]]\ntarget = "{far.DESTINATION}"')
    for command in commands[3:5]:
        typed(lab, command)
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    lab.run("systemctl start zvmsnap-send.service", timeout_s=scenario.ROUND_LIMIT_S)
    assert "web" in typed(lab, commands[5]).stdout
    assert len(far.points(lab)) == 2

    far.burn(lab)
    since = guests.serial_size_bytes(lab, "web")
    name = back.hourly_of(lab, f"{far.ROOT}/{WEB.top}", 1)
    for command in readme.commands("The host burned down"):
        typed(lab, command)
    stored = back.stored_count(lab, name)
    back.assert_goes_on(lab, "web", stored, since)
    scenario.assert_on_base(lab, "web", WEB.disks)


@pytest.mark.whole
def test_start_it_where_it_was_sent_to(lab: Lab) -> None:
    far.built(lab)
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    far.send(lab, "web", far.DESTINATION)
    lab.run("virsh destroy web && virsh undefine web")
    lab.run(f"cp {far.CONFIG} {scenario.CONFIG}")
    since = guests.serial_size_bytes(lab, "web")
    listing, make, remove, *restore = readme.commands("Start it where it was sent to")
    typed(lab, listing)
    typed(lab, make)
    guests.wait_counts(lab, "web-look-web", stored + scenario.PROOF_COUNTS)
    typed(lab, remove)
    for command in restore:
        typed(lab, command)
    back.assert_goes_on(lab, "web", stored, since)
