"""The recipes of docs/how-to, word for word: their commands, on a terminal, answered yes."""

from __future__ import annotations

import back
import far
import pytest
import readme
import scenario
from scenario import WEB
from terminal import typed

from labkit import guests
from labkit.api import Lab


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    return lab_session


@pytest.mark.whole
def test_get_last_nights_machine_back(lab: Lab) -> None:
    scenario.configured(lab)
    lab.set_clock("2026-11-20T03:00:00+00:00")
    scenario.take(lab)
    lab.set_clock("2026-11-21T09:30:00+00:00")
    scenario.take(lab)
    (name,) = [n for n in scenario.snapshots(lab, WEB.top) if "2026-11-20" in n and "hourly" in n]
    stored = back.stored_count(lab, name)
    listing, look, restore, again, undo = readme.commands("Get last night's machine back")
    for command in (listing, look, restore):
        typed(lab, command)
    last = back.assert_jumped_to(lab, stored)
    # All but the second at which the safety point was taken is as it stands there.
    said = undo.split()[-1]
    found = back.safety_point(lab)
    assert said.rpartition(":")[0].partition("_09")[0] == found.partition("_09")[0]
    typed(lab, again)
    typed(lab, undo.replace(said, found))
    scenario.wait_until("it jumps back", lambda: len(back.jumps(lab)) == 2)
    assert back.jumps(lab)[-1][1] == last + 1
    scenario.counts_on(lab)


@pytest.mark.whole
def test_offsite_every_night_and_the_host_burns_down(lab: Lab) -> None:
    far.built(lab)
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    look, send, listing = readme.commands("On the hypervisor")
    typed(lab, look)
    assert far.points(lab) == []
    typed(lab, send)
    assert "memory" in typed(lab, listing).stdout
    scenario.configure(lab, f'[[destination]]\ntarget = "{far.DESTINATION}"')
    units, timer, status = readme.commands("By a timer")
    typed(lab, units)
    typed(lab, timer)
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    lab.run("systemctl start zvmsnap-send.service", timeout_s=scenario.ROUND_LIMIT_S)
    assert "web" in typed(lab, status).stdout
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
    listing, make, remove, mount, restore = readme.commands("Start it where it was sent to")
    typed(lab, listing)
    typed(lab, make)
    guests.wait_counts(lab, "web-look-web", stored + scenario.PROOF_COUNTS)
    typed(lab, remove)
    for command in (mount, restore):
        typed(lab, command)
    back.assert_goes_on(lab, "web", stored, since)
