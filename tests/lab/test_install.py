"""The ways of the README to put zvmsnap on a host."""

import pytest

from labkit.api import CODE_DIR, Lab

UNKNOWN = "SANOID_TARGET=tank SANOID_SNAPNAME=autosnap_2001-01-01_00:00:00_daily"
# The lab has no network: pipx builds with the distribution's setuptools.
OFFLINE = "--pip-args='--no-index --no-build-isolation'"


@pytest.mark.state("ready")
def test_pipx_installs_a_command_that_sees_the_bindings_of_the_distribution(lab: Lab) -> None:
    lab.run(
        f"PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/opt/bin pipx install --system-site-packages {OFFLINE} "
        f"{CODE_DIR}",
        timeout_s=300,
    )
    assert lab.run("cd / && /opt/bin/zvmsnap --version").stdout.startswith("zvmsnap ")
    assert lab.run("cd / && /opt/bin/zvmsnap list").stdout == "no points\n"
    hook = lab.run(f"cd / && {UNKNOWN} /opt/bin/zvmsnap hook pre")
    assert "Traceback" not in hook.stderr


@pytest.mark.state("ready")
def test_hooks_run_from_a_checkout_through_a_symlink(lab: Lab) -> None:
    lab.run(f"install -d /etc/sanoid && ln -s {CODE_DIR}/hooks/pruning /etc/sanoid/pruning")
    assert lab.run(f"cd / && {UNKNOWN} /etc/sanoid/pruning", check=False).returncode == 0
    nothing_said = lab.run("cd / && /etc/sanoid/pruning", check=False)
    assert nothing_said.returncode == 2
    assert len(nothing_said.stderr.splitlines()) == 1
