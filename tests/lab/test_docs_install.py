"""The pages about installing, word for word: of README from a checkout, and the package."""

from __future__ import annotations

import pytest
import readme
import scenario
from packages import built
from scenario import CONFIG, SANOID_CONF, WEB
from terminal import run

from labkit.api import CODE_DIR, Lab

pytestmark = [pytest.mark.whole, pytest.mark.long]

DEB = "zvmsnap_1_all.deb"
# The image leaves documents out of all packages.
WITH_DOCUMENTS = "path-include=/usr/share/doc/zvmsnap/*\n"
# The lab has no network: what pip would fetch from PyPI is what Debian's ensurepip has.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/usr/share/python-wheels"}
RECOVER = "zvmsnap-recover.service"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `web` counts on a host with a checkout; nothing of zvmsnap is set up."""
    scenario.configured(lab_session)
    lab_session.run(f"rm /usr/local/bin/zvmsnap {SANOID_CONF} {CONFIG}")
    lab_session.put("/etc/dpkg/dpkg.cfg.d/zz-documents", WITH_DOCUMENTS)
    return lab_session


def assert_taken(lab: Lab) -> None:
    """sanoid takes a point of `web`, with what is set up."""
    scenario.configure(lab)
    scenario.take(lab)
    scenario.assert_pages(scenario.the_point(lab, "web"))
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


def enabled(lab: Lab, unit: str) -> bool:
    return lab.run(f"systemctl is-enabled {unit}", check=False).stdout == "enabled\n"


def test_the_ways_of_the_readme(lab: Lab) -> None:
    commands = readme.commands("Install it on a hypervisor")
    package, needed, pipx, command, unit, recover, sanoid_conf, config = commands
    lab.put(f"/root/here/build/{DEB}", built()[0].read_bytes())
    run(lab, f"cd /root/here && {package}")
    assert lab.run("command -v zvmsnap").stdout == "/usr/bin/zvmsnap\n"
    lab.run("dpkg --purge zvmsnap", timeout_s=300)

    # All that is needed is in the lab, by the names that the page has.
    for each in (needed, pipx):
        assert "Installing: 0," in run(lab, each).stdout
    lab.run(command, env=OFFLINE, timeout_s=scenario.ROUND_LIMIT_S)
    assert lab.run("cd / && /usr/local/bin/zvmsnap --version").stdout.startswith("zvmsnap ")
    assert "/opt/pipx/" in lab.run("readlink -f /usr/local/bin/zvmsnap").stdout
    for each in (unit, recover):
        run(lab, each)
    assert enabled(lab, RECOVER)
    run(lab, f"systemctl start {RECOVER}")
    for each in (sanoid_conf, config):
        run(lab, each)
    for example, file in (("sanoid.conf", SANOID_CONF), ("config.toml", CONFIG)):
        lab.run(f"cmp {CODE_DIR}/{example}.example {file}")
        assert lab.run(f"stat -c %a {file}").stdout == "644\n"
    run(lab, "zvmsnap list")
    assert_taken(lab)


def test_the_package_from_first_to_last(lab: Lab) -> None:
    (checkout,) = readme.commands("From a checkout")
    said = run(lab, checkout, status=2).stderr
    assert "SANOID_TARGET is not set" in said and said.count("\n") == 1
    # A checkout that README's unit was copied from.
    lab.run(f"cp {CODE_DIR}/systemd/{RECOVER} /etc/systemd/system/ && systemctl enable {RECOVER}")

    install, sanoid_conf, config, timers = readme.commands("Debian 13")
    lab.put(f"/root/here/{DEB}", built()[0].read_bytes())
    run(lab, f"cd /root/here && {install}")
    for each in (sanoid_conf, config):
        run(lab, each)
    for file in (SANOID_CONF, CONFIG):
        assert lab.run(f"stat -c %a {file}").stdout == "644\n"
    run(lab, timers)
    for unit in timers.split()[3:]:
        assert lab.run(f"systemctl is-active {unit}").stdout == "active\n"

    run(lab, "\n".join(readme.commands("From a checkout to the package")))
    assert lab.run("readlink -f /opt/zvmsnap/hooks").stdout == "/usr/lib/zvmsnap/hooks\n"
    assert lab.run("command -v zvmsnap; readlink /usr/local/bin/zvmsnap").stdout.split() == [
        "/usr/local/bin/zvmsnap", "/usr/bin/zvmsnap"
    ]
    assert enabled(lab, RECOVER)
    assert f"/usr/lib/systemd/system/{RECOVER}" in lab.run(f"systemctl cat {RECOVER}").stdout
    assert "/usr/lib/zvmsnap/hooks/pre-snapshot" in lab.get(SANOID_CONF).decode()
    assert_taken(lab)

    (idle,) = readme.commands("Upgrade")
    assert run(lab, idle).stdout == "nothing is under way\n"

    purge, forget = readme.commands("Remove")
    point = scenario.the_point(lab, WEB.name)
    # apt takes no answer that was typed before it has asked.
    run(lab, f"yes | {purge}")
    lab.run("test ! -e /usr/bin/zvmsnap && test ! -e /usr/lib/zvmsnap")
    lab.run(f"test -e {CONFIG} && test -e {point.directory}/manifest.json")
    run(lab, forget)
    lab.run(f"test ! -e {CONFIG} && test ! -e {scenario.JOURNAL}")
    lab.run(f"test -e {point.directory}/manifest.json")
