"""What the Debian packages have, and how they are called."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tools import deb

CHECKOUT = Path(__file__).resolve().parents[3]
WHEN = datetime(2026, 11, 26, 19, 35, 25, tzinfo=UTC)


def contents(pattern: str) -> dict[str, str]:
    """The files of a package that was built, and their modes."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed")
    built = sorted((CHECKOUT / "build").glob(pattern))
    if not built:
        pytest.skip("no package was built: make deb")
    said = subprocess.run(
        ["dpkg-deb", "--contents", built[-1]], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(maxsplit=5) for line in said.splitlines()]
    return {row[5].partition(" -> ")[0].removeprefix("."): row[0] for row in rows}


def test_versions() -> None:
    assert deb.version_of("0.2.0", WHEN, released=True) == "0.2.0"
    assert deb.version_of("0.2.0", WHEN, released=False) == "0.2.0~20261126193525"


def test_the_changelog_is_debians() -> None:
    text = deb.changelog("0.2.0~1", WHEN, deb.maintainer({}))
    assert text.startswith("zvmsnap (0.2.0~1) unstable; urgency=medium\n\n  * ")
    assert text.endswith(">  Thu, 26 Nov 2026 19:35:25 +0000\n")


def test_paths_of_a_checkout_become_those_of_the_package() -> None:
    said = deb.packaged((CHECKOUT / "sanoid.conf.example").read_text())
    assert "pre_snapshot_script = /usr/lib/zvmsnap/hooks/pre-snapshot" in said
    assert "/opt" not in said
    for unit in (CHECKOUT / "systemd").glob("*.service"):
        assert "ExecStart=/usr/bin/zvmsnap " in deb.packaged(unit.read_text()), unit.name


def test_the_copy_has_what_is_packaged(tmp_path: Path) -> None:
    source = tmp_path / "source"
    deb.copy(source)
    assert (source / "debian" / "zvmsnap.zvmsnap-recover.service").is_file()
    assert (source / "zvmsnap" / "__main__.py").is_file()
    assert not list(source.rglob("*.pyc"))
    assert "/usr/local/bin" not in (source / "zvmsnap" / "cli" / "main.py").read_text()
    assert "/opt/zvmsnap/hooks" not in (source / "docs/how-to/other-callers.md").read_text()


def test_files_of_the_package() -> None:
    files = contents("zvmsnap_*.deb")
    for name in ("pre-snapshot", "post-snapshot", "pruning", "zrepl"):
        assert files[f"/usr/lib/zvmsnap/hooks/{name}"] == "-rwxr-xr-x"
    assert files["/usr/lib/zvmsnap/bin/zvmsnap"] == "-rwxr-xr-x"
    assert files["/usr/bin/zvmsnap"].startswith("l")
    assert files["/usr/lib/zvmsnap/zvmsnap/__main__.py"] == "-rw-r--r--"
    units = {Path(path).name for path in files if "/systemd/system/z" in path}
    assert {"zvmsnap-recover.service", "zvmsnap-send.timer", "zvmsnap-verify.timer"} <= units
    assert {"zvmsnap-prune.service", "zvmsnap-prune.timer"} <= units
    for path in (
        "/usr/share/man/man1/zvmsnap.1.gz",
        "/usr/share/man/man1/zvmsnap-list.1.gz",
        "/usr/share/man/man5/zvmsnap.conf.5.gz",
        "/usr/share/man/man7/zvmsnap-hooks.7.gz",
        "/usr/share/bash-completion/completions/zvmsnap",
        "/usr/share/zsh/vendor-completions/_zvmsnap",
        "/usr/share/fish/vendor_completions.d/zvmsnap.fish",
        "/usr/lib/tmpfiles.d/zvmsnap.conf",
        "/usr/share/doc/zvmsnap/examples/sanoid.conf.example",
        "/usr/share/doc/zvmsnap/examples/config.toml.example",
    ):
        assert path in files, path


def test_no_file_is_where_points_or_settings_are() -> None:
    files = contents("zvmsnap_*.deb")
    assert [path for path in files if path.startswith(("/etc/", "/var/", "/run/", "/opt/"))] == []


def test_files_of_the_package_of_python_packages() -> None:
    files = contents("zvmsnap-python_*.deb")
    for python in ("python3.11", "python3.12"):
        own = [path for path in files if path.startswith(f"/usr/lib/zvmsnap/{python}/")]
        assert any("/msgspec/_core.cpython-" in path for path in own)
        assert f"/usr/lib/zvmsnap/{python}/typer/main.py" in own


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DEBFULLNAME": "A B", "DEBEMAIL": "a@b.example"}, "A B <a@b.example>"),
        ({"DEBFULLNAME": "A B"}, "zvmsnap maintainers <zvmsnap@zvmsnap.invalid>"),
        ({}, "zvmsnap maintainers <zvmsnap@zvmsnap.invalid>"),
    ],
)
def test_the_maintainer_is_who_builds_it(environment: dict[str, str], expected: str) -> None:
    assert deb.maintainer(environment) == expected


def test_the_control_file_names_nobody() -> None:
    """What stands there is replaced by who builds the package."""
    assert f"Maintainer: {deb.maintainer({})}\n" in (CHECKOUT / "debian/control").read_text()
