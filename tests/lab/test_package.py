"""The Debian package on Debian 13: installed, used, upgraded while a run is open, purged."""

from __future__ import annotations

import pytest
import scenario
from packages import built
from scenario import VAULT, WEB

from labkit.api import Lab

DEB = "/root/zvmsnap.deb"
HOOKS = "/usr/lib/zvmsnap/hooks"
# The image leaves documents and man pages out of all packages.
INSTALL = ("dpkg --path-include='/usr/share/doc/zvmsnap/*' --path-include='/usr/share/man/*' "
           f"-i {DEB}")
# A pre hook that sanoid waits for until the file is gone.
HELD_PRE = f"""\
#!/bin/sh
{HOOKS}/pre-snapshot
code=$?
touch /root/open
while [ -e /root/hold ]; do sleep 0.2; done
exit $code
"""

pytestmark = [pytest.mark.whole, pytest.mark.long]


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `web` counts, and the package is all that the lab has of zvmsnap."""
    own, _ = built()
    scenario.configured(lab_session)
    lab_session.run("rm -r /opt/zvmsnap /usr/local/bin/zvmsnap /etc/sanoid/sanoid.conf")
    lab_session.put(DEB, own.read_bytes())
    installed = lab_session.run(INSTALL, timeout_s=300)
    assert "dependency problems" not in installed.stderr
    return lab_session


def test_installed_used_and_purged(lab: Lab) -> None:
    assert lab.run("command -v zvmsnap").stdout == "/usr/bin/zvmsnap\n"
    assert lab.run("stat -c %a /run/zvmsnap").stdout == "700\n"
    enabled = "systemctl is-enabled zvmsnap-{}"
    assert lab.run(enabled.format("recover.service")).stdout == "enabled\n"
    for timer in ("send", "verify", "prune", "monitor"):
        assert lab.run(enabled.format(f"{timer}.timer"), check=False).stdout == "disabled\n"
        active = lab.run(f"systemctl is-active zvmsnap-{timer}.timer", check=False)
        assert active.stdout == "inactive\n"
    lab.run("ls /usr/share/man/man1/zvmsnap-list.1.gz /usr/share/man/man5/zvmsnap.conf.5.gz")

    lab.run("install -D /usr/share/doc/zvmsnap/examples/sanoid.conf.example "
            "/etc/sanoid/sanoid.conf")
    scenario.take(lab)
    point = scenario.the_point(lab, "web")
    scenario.assert_pages(point)
    scenario.assert_at_rest(lab)
    assert "web@latest" in lab.run(
        "_ZVMSNAP_COMPLETE=complete_bash COMP_WORDS='zvmsnap show web@' COMP_CWORD=2 zvmsnap"
    ).stdout
    lab.run("systemctl start zvmsnap-verify.service", timeout_s=300)
    heading, line = lab.run("zvmsnap list").stdout.splitlines()
    assert line[heading.index("VERIFIED"):].startswith("read ")
    lab.run("zvmsnap restore --yes web@latest", timeout_s=600)
    scenario.counts_on(lab)
    scenario.assert_on_base(lab, "web", WEB.disks)

    kept = lab.run(f"find {VAULT} /var/lib/zvmsnap /etc/zvmsnap | sort").stdout
    purged = lab.run("dpkg --purge zvmsnap", timeout_s=300)
    assert "stay where they are" in purged.stdout
    assert lab.run(f"find {VAULT} /var/lib/zvmsnap /etc/zvmsnap | sort").stdout == kept
    assert point.directory in kept
    lab.run("test ! -e /usr/lib/zvmsnap && test ! -e /usr/bin/zvmsnap")
    assert lab.run("find /etc/systemd -name 'zvmsnap*'").stdout == ""


def test_an_upgrade_waits_for_a_run_that_is_open(lab: Lab) -> None:
    lab.put("/root/held-pre", HELD_PRE, 0o755)
    scenario.write_sanoid_conf(
        lab,
        pre_snapshot_script="/root/held-pre",
        post_snapshot_script=f"{HOOKS}/post-snapshot",
        pruning_script=f"{HOOKS}/pruning",
    )
    lab.run("touch /root/hold")
    sanoid = lab.start("exec sanoid --take-snapshots --verbose")
    scenario.wait_until("pre to end", lambda: _exists(lab, "/root/open"), scenario.ROUND_LIMIT_S)

    refused = lab.run(f"ZVMSNAP_WAIT_S=3 {INSTALL}", check=False, timeout_s=300)
    assert refused.returncode != 0
    assert "waiting for what is under way: web: run " in refused.stderr
    assert "zvmsnap: not replaced, as guests are being worked on" in refused.stderr
    assert lab.run("dpkg-query -W -f '${Status}' zvmsnap").stdout == "install ok installed"

    lab.start(f"({INSTALL}) > /root/upgrade.log 2>&1; echo $? > /root/upgraded")
    scenario.wait_until(
        "the upgrade to wait",
        lambda: "waiting for" in lab.run("cat /root/upgrade.log", check=False).stdout,
    )
    assert not _exists(lab, "/root/upgraded")
    lab.run("rm /root/hold")
    sanoid.wait(scenario.ROUND_LIMIT_S)
    scenario.wait_until("the upgrade", lambda: _exists(lab, "/root/upgraded"), 600)
    assert lab.run("cat /root/upgraded").stdout == "0\n", lab.run("cat /root/upgrade.log")
    scenario.assert_pages(scenario.the_point(lab, "web"))
    scenario.assert_at_rest(lab)
    lab.run("zvmsnap idle")


def test_the_names_of_a_checkout_lead_to_the_package(lab: Lab) -> None:
    lab.run("ln -s -t /opt /usr/lib/zvmsnap && ln -s -t /usr/local/bin /usr/bin/zvmsnap")
    lab.put(scenario.SANOID_CONF, scenario.EXAMPLE_CONF)
    assert "/opt/zvmsnap/hooks/pre-snapshot" in scenario.EXAMPLE_CONF
    scenario.take(lab)
    scenario.assert_pages(scenario.the_point(lab, "web"))
    scenario.assert_at_rest(lab)
    unknown = "SANOID_TARGET=tank SANOID_SNAPNAME=autosnap_2001-01-01_00:00:00_daily"
    lab.run(f"{unknown} /usr/local/bin/zvmsnap hook prune")
    # These names are the package's: it says nothing of them.
    assert "names hooks in" not in lab.run(INSTALL, timeout_s=300).stdout


def test_hooks_of_a_checkout_are_named(lab: Lab) -> None:
    lab.run("mkdir -p /opt/zvmsnap/hooks")
    lab.put(scenario.SANOID_CONF, scenario.EXAMPLE_CONF)
    said = lab.run(INSTALL, timeout_s=300).stdout
    assert "sanoid.conf names hooks in /opt/zvmsnap; those of this package are in" in said


def _exists(lab: Lab, path: str) -> bool:
    return lab.run(f"test -e {path}", check=False).returncode == 0
