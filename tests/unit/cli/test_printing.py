"""What leaves on the terminal: nothing that could command it, or lie to whoever reads it."""

import ast
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zvmsnap
from tests.fakes.zfs_pool import listed
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.terminal import options, render

Run = Callable[..., tuple[int, str, str]]
CODE = Path(zvmsnap.__file__).parent

# Who else may write on a terminal: nothing of these comes from elsewhere, or it is made printable.
PRINTERS = {
    "terminal/options.py": "print_json and print_lines",
    "common/log.py": "log lines",
    "hooks/stand_in.py": "a fixed line, when nothing else may be imported",
    "hooks/needed.py": "a line about Python itself, when nothing else may be imported",
    "files/keeper.py": "JSON, for the process that has started it",
    "bulk/progress.py": "the progress of work, made printable",
    "replication/syncoid.py": "relays syncoid's progress",
}
STREAMS = ("stdout", "stderr")


def _prints(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    asks = any(name.endswith(f"{stream}.{verb}") for stream in STREAMS for verb in ("isatty",))
    streams = any(f"sys.{stream}" in ast.unparse(node) for stream in STREAMS)
    return name in ("print", "typer.echo", "click.echo", "typer.secho") or (streams and not asks)


def test_whatever_prints_is_known() -> None:
    printers = {
        str(path.relative_to(CODE))
        for path in CODE.rglob("*.py")
        if any(_prints(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    # Two that write no text of others: the version, and the error handler of stdout.
    assert printers - {"cli/main.py"} <= PRINTERS.keys()


def hostile(kind: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    return st.builds(kind, **{name: TEXTS for name in kind.__struct_fields__ if name in WORDS})


TEXTS = st.text(st.characters(codec="utf-8"))  # as JSON can have it, and XML
WORDS = {*SnapshotRef.__struct_fields__, *Disk.__struct_fields__} - {
    *("guid", "createtxg", "dataset_guid", "pool_guid", "partition")
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_point_says_more_than_its_lines(
    data: st.DataObject, manifest: Callable[..., Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its manifest, its directory and the result of `verify` hold."""
    ref = data.draw(hostile(SnapshotRef), "snapshot")
    words = [data.draw(TEXTS) for _ in range(9)]
    known = manifest()
    point = RestorePoint(
        Path("/vault/web") / (words[0].replace("/", "").replace("\0", "") or "x"),
        manifest(
            **dict(zip(("domain", "uuid", "run", "capture", "tpm_warning"), words, strict=False)),
            snapshots=(ref,),
            disks=(data.draw(hostile(Disk), "disk"),),
            host=msgspec.structs.replace(known.host, machine=words[5], libvirt=words[6]),
        ),
    )
    result = VerifyResult(checked=known.created, why=words[7], output=words[8], booted=True)
    liveness = Liveness.by(listed([], "tank"))
    options.print_lines(
        render.point_table([point], liveness, lambda _point: result, lambda _point: None)
    )
    options.print_lines([render.verify_result(result)])
    table = capsys.readouterr().out
    assert table.count("\n") == 3
    lines = render.point_details(point, liveness, None, None)
    options.print_lines(lines)
    details = capsys.readouterr().out
    assert details.count("\n") == len(lines)
    assert all(line.isprintable() for line in (table + details).split("\n"))


EVIL = "\x1b]0;owned\x07\nweb  fake  memory \u202e\x9b2J"


def test_list_and_show_of_a_hostile_vault(
    run: Run, put: Callable[[Manifest], Path], manifest: Callable[..., Manifest]
) -> None:
    point = put(manifest(reason=EVIL, tpm_warning=EVIL))
    for words in (("list",), ("show", "web@latest")):
        code, out, err = run(*words)
        assert code == 0
        assert r"\x1b]0;owned\x07\nweb" in out
        assert all(line.isprintable() for line in (out + err).split("\n"))
    out = run("show", "web@latest", "--json")[1]
    assert out.isascii() and json.loads(out)["reason"] == EVIL
    (point / "manifest.json").write_text("{" + EVIL)
    code, out, err = run("list")
    assert code == 1
    assert all(line.isprintable() for line in (out + err).split("\n"))


def test_a_line_of_the_table_is_short(
    manifest: Callable[..., Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    points = [
        RestorePoint(Path("/v/x"), manifest(domain=name)) for name in ("web", "y" * 1_000_000)
    ]
    table = render.point_table(
        points, Liveness.by(listed([])), lambda _point: None, lambda _point: None
    )
    assert max(map(len, table)) < 1000


def test_a_locale_without_the_characters_of_a_name(
    run: Run,
    put: Callable[[Manifest], Path],
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(manifest(domain="büro日"))
    latin1 = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", latin1)
    assert run("list")[0] == 0
    latin1.flush()
    assert b"b\xfcro\\u65e5" in latin1.buffer.getvalue()
