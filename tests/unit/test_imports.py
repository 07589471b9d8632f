"""The order of packages: each imports only those below it. See docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zvmsnap

ROOT = Path(zvmsnap.__file__).parent
# From the top to the bottom; packages on one floor know nothing of each other.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"report", "setup"},
    {"check", "watch"},
    {"terminal"},
    {"hooks"},
    {"recovery"},
    {"backup", "files", "flatten"},
    {"restore", "capture", "point_disks"},
    {"finalize"},
    {"clone", "replication", "quiesce"},
    {"retention", "archive"},
    {"disks", "journal", "encryption"},
    {"points"},
    {"inventory", "ram", "notify"},
    {"config", "zfs", "virt", "bulk"},
    {"common"},
)
# Each binding belongs to one seam: nobody else knows how libvirt or ZFS are spoken to.
SEAMS = {"libvirt": "virt", "libvirt_qemu": "virt", "libzfs_core": "zfs", "guestfs": "files"}
LINES_MAX = 400
MODULES_MAX = 12


@dataclass(frozen=True)
class Import:
    """One import, at any depth of a function: who imports what, and in which line."""

    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def imports(root: Path = ROOT) -> Iterator[Import]:
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(path, node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno}: a relative import"
                for alias in node.names:
                    yield Import(path, node.lineno, f"{node.module}.{alias.name}")


def module_of(name: str, root: Path = ROOT) -> str | None:
    """The module of ours that `zvmsnap.a.b.name` lies in; None if it is none of ours."""
    words = name.split(".")
    while words[:1] == ["zvmsnap"]:
        path = root.parent.joinpath(*words)
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(words)
        words.pop()
    return None


def name_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor_of(package: str) -> int:
    return next(floor for floor, names in enumerate(FLOORS) if package in names)


def upward(root: Path = ROOT) -> list[str]:
    faults = []
    for each in imports(root):
        module = module_of(each.module, root)
        if module in (None, "zvmsnap"):
            continue
        importer, imported = package_of(name_of(each.path, root)), package_of(module)
        if importer not in ("", imported) and floor_of(imported) <= floor_of(importer):
            faults.append(str(each))
    return faults


def circles(root: Path = ROOT) -> list[str]:
    """Every circle of modules, as the import that closes it."""
    edges: dict[str, list[tuple[str, Import]]] = {}
    for each in imports(root):
        module = module_of(each.module, root)
        if module and module != "zvmsnap":
            edges.setdefault(name_of(each.path, root), []).append((module, each))
    done: set[str] = set()
    faults: list[str] = []

    def visit(module: str, above: tuple[str, ...]) -> None:
        for imported, each in edges.get(module, ()):
            if imported in above:
                faults.append(f"{each}, which leads back to it: {' > '.join(above)}")
            elif imported not in done:
                visit(imported, (*above, imported))
        done.add(module)

    for module in edges:
        if module not in done:
            visit(module, (module,))
    return faults


def test_every_package_has_a_floor() -> None:
    packages = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert packages - {"__init__", "__pycache__"} == set().union(*FLOORS)


def test_nobody_imports_upward() -> None:
    assert upward() == []


def test_no_circles() -> None:
    assert circles() == []


@pytest.mark.parametrize("binding", SEAMS)
def test_seams(binding: str) -> None:
    users = {
        package_of(name_of(each.path)) for each in imports() if each.module.split(".")[0] == binding
    }
    assert users == {SEAMS[binding]}


def test_every_init_is_empty() -> None:
    assert [path for path in ROOT.glob("*/__init__.py") if path.read_text()] == []


def test_nothing_is_too_large() -> None:
    long = [path for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > LINES_MAX]
    many = [path for path in ROOT.iterdir() if len(list(path.glob("*.py"))) - 1 > MODULES_MAX]
    assert (long, many) == ([], [])


def test_what_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    root = tmp_path / "zvmsnap"
    for package in ("cli", "common"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "__init__.py").touch()
    (root / "common" / "log.py").write_text("\n\ndef f():\n    from zvmsnap.cli import main\n")
    (root / "cli" / "main.py").write_text("from zvmsnap.common.log import f\n")
    assert upward(root) == [f"{root}/common/log.py:4 imports zvmsnap.cli.main"]
    (circle,) = circles(root)
    assert circle.endswith("which leads back to it: zvmsnap.cli.main > zvmsnap.common.log")
