"""The ways of the README to put zvmsnap on a host."""

import pytest

from labkit.api import CODE_DIR, Lab

UNKNOWN = "SANOID_TARGET=tank SANOID_SNAPNAME=autosnap_2001-01-01_00:00:00_daily"


@pytest.mark.state("ready")
def test_installed_beside_the_bindings_of_the_distribution(lab: Lab) -> None:
    # What pipx does, but offline: the lab has no network, so the distribution's setuptools build.
    lab.run(
        f"python3 -m venv --system-site-packages /opt/venv && /opt/venv/bin/pip install "
        f"--quiet --no-index --no-build-isolation {CODE_DIR}",
        timeout_s=300,
    )
    assert lab.run("cd / && /opt/venv/bin/zvmsnap --version").stdout.startswith("zvmsnap ")
    assert lab.run("cd / && /opt/venv/bin/zvmsnap list").stdout == "no points\n"
    lab.run(f"cd / && {UNKNOWN} /opt/venv/bin/zvmsnap hook pre")


@pytest.mark.state("ready")
def test_hooks_run_from_a_checkout_through_a_symlink(lab: Lab) -> None:
    lab.run(f"install -d /etc/sanoid && ln -s {CODE_DIR}/hooks/pruning /etc/sanoid/pruning")
    assert lab.run(f"cd / && {UNKNOWN} /etc/sanoid/pruning", check=False).returncode == 0
    nothing_said = lab.run("cd / && /etc/sanoid/pruning", check=False)
    assert nothing_said.returncode == 2
    assert len(nothing_said.stderr.splitlines()) == 1
