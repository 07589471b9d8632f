"""Builds the Debian packages into build/, from a copy of the checkout: `make deb`.

What the package has beside the files of the checkout is made here, into debian/made of the copy:
man pages and completion, which the parser says, and the wheels of zvmsnap-python, from PyPI. So
debian/rules needs neither a network nor the Python packages of zvmsnap.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import zvmsnap
from tools import completion_scripts, man_pages

_CHECKOUT = Path(__file__).resolve().parents[1]
_BUILD = _CHECKOUT / "build"
_COPIED = (
    *("zvmsnap", "hooks", "docs", "debian", "examples"),
    *("README.md", "CHANGELOG.md", "*.example"),
)
_PYTHONS = ("3.11", "3.12")  # of Debian 12 and Ubuntu 24.04
_PLATFORMS = {"amd64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}
# Who a package names if nobody says who builds it; .invalid is nobody's (RFC 2606).
_NOBODY = "zvmsnap maintainers <zvmsnap@zvmsnap.invalid>"
# How a checkout is named in its files and documents, and how the package is.
_PATHS = {
    "/opt/zvmsnap/hooks": "/usr/lib/zvmsnap/hooks",
    "/usr/local/bin/zvmsnap": "/usr/bin/zvmsnap",
}


def main() -> None:
    """Build, check with lintian, and print what was built."""
    source = _BUILD / "deb" / f"zvmsnap-{zvmsnap.__version__}"
    shutil.rmtree(source.parent, ignore_errors=True)
    version, when = _version()
    copy(source)
    make(source / "debian", when)
    who = maintainer(os.environ)
    (source / "debian" / "changelog").write_text(changelog(version, when, who))
    control = source / "debian" / "control"
    control.write_text(control.read_text().replace(_NOBODY, who))
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(int(when.timestamp())),
        "DEB_BUILD_OPTIONS": "nocheck",
    }
    command = ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-pre-clean"]
    subprocess.run(command, cwd=source, env=environment, check=True)
    for old in _BUILD.glob("zvmsnap*.deb"):
        old.unlink()
    built = [path.rename(_BUILD / path.name) for path in source.parent.glob("*.deb")]
    _lint(built)
    for path in sorted(built):
        print(path.relative_to(_CHECKOUT))


def copy(source: Path) -> None:
    """Copy what is packaged, with the names that it has there."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    source.mkdir(parents=True)
    for path in sorted(each for pattern in _COPIED for each in _CHECKOUT.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=ignored)
        else:
            shutil.copy(path, source)
    texts = [*source.glob("*.md"), *source.glob("*.example"), *(source / "docs").rglob("*.md")]
    for path in (*texts, source / "zvmsnap" / "cli" / "main.py"):
        path.write_text(packaged(path.read_text()))
    for unit in (_CHECKOUT / "systemd").iterdir():
        text = packaged(unit.read_text())
        (source / "debian" / f"zvmsnap.{unit.name}").write_text(text)


def packaged(text: str) -> str:
    """The text with the paths of the package."""
    for checkout, package in _PATHS.items():
        text = text.replace(checkout, package)
    return text


def make(debian: Path, when: datetime) -> None:
    """Make what the package has beside the files of the checkout, into debian/made."""
    made = debian / "made"
    for folder in ("man", "completion", "bin", "python"):
        (made / folder).mkdir(parents=True)
    pages = man_pages.pages(debian.parent / "docs", f"{when:%Y-%m-%d}")
    scripts = completion_scripts.scripts()
    for folder, files in (("man", pages), ("completion", scripts)):
        for name, text in files.items():
            (made / folder / name).write_text(text)
    shutil.copy(debian / "command", made / "bin" / "zvmsnap")
    (made / "bin" / "zvmsnap").chmod(0o755)
    for python in _PYTHONS:
        _unpack_wheels(debian / "python-packages.txt", python, made)


def _unpack_wheels(requirements: Path, python: str, made: Path) -> None:
    architecture = _said("dpkg", "--print-architecture")
    if architecture not in _PLATFORMS:
        raise SystemExit(f"zvmsnap-python is for {', '.join(_PLATFORMS)}, not {architecture}")
    wheels = made / f"wheels-{python}"
    chosen = ["--python-version", python, "--platform", _PLATFORMS[architecture]]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", *chosen]
    subprocess.run([*command, "--requirement", requirements, "--dest", wheels], check=True)
    own = made / "python" / f"python{python}"
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(own)


def maintainer(environment: Mapping[str, str]) -> str:
    """Who builds the package, as dch(1) and its like know it."""
    name, address = environment.get("DEBFULLNAME"), environment.get("DEBEMAIL")
    return f"{name} <{address}>" if name and address else _NOBODY


def changelog(version: str, when: datetime, who: str) -> str:
    """debian/changelog, as dpkg reads the version from it; CHANGELOG.md says what has changed."""
    return (
        f"zvmsnap ({version}) unstable; urgency=medium\n\n"
        "  * See CHANGELOG.md.\n\n"
        f" -- {who}  {when:%a, %d %b %Y %H:%M:%S +0000}\n"
    )


def _version() -> tuple[str, datetime]:
    """Of a release its number; before it one that grows with each commit, and is less."""
    released = "## Unreleased" not in (_CHECKOUT / "CHANGELOG.md").read_text()
    try:
        when = datetime.fromtimestamp(int(_said("git", "log", "-1", "--format=%ct")), UTC)
    except (subprocess.CalledProcessError, FileNotFoundError):
        when = datetime.now(UTC)  # no clone
    return version_of(zvmsnap.__version__, when, released=released), when


def version_of(version: str, when: datetime, *, released: bool) -> str:
    """The version of the package."""
    return version if released else f"{version}~{when:%Y%m%d%H%M%S}"


def _said(*command: str) -> str:
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _lint(built: list[Path]) -> None:
    command = ["lintian", "--fail-on", "error,warning", "--allow-root", *map(str, built)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
