"""Page images go from vault to vault, with real rsync and coreutils: also with worse ones."""

import hashlib
import os
import random
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.fakes.guest import UUID
from zvmsnap.common.errors import DestinationUnreachable, ImageUnloadable, RemoteFailed
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.manifest import DOMAIN_XML, Manifest, Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.ram import page_image
from zvmsnap.ram.page_image import PAGES, REST
from zvmsnap.replication import ram_copy
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.transfer import PointTransfer, newest_pages

Build = Callable[..., Manifest]
Say = Callable[[str, str], Path]
RECORD = 16 << 10
RECORDS, FULL = 256, 100  # in the image, and that are not zeros
LENGTH = RECORDS * RECORD
USED = FULL * RECORD
SLACK = 16 << 10  # what the file system itself needs for extents
SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -l ] && shift 2
shift
exec sh -c "$*"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Replaces a program, on both sides; $REAL is the path of the real one."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")

    def replaced(name: str, script: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/sh\nREAL={shutil.which(name, path='/usr/bin:/bin')}\n{script}\n")
        path.chmod(0o755)
        return path

    replaced("ssh", SSH)
    return replaced


@pytest.fixture
def there(
    request: pytest.FixtureRequest, tmp_path: Path, config: Config, program: Say
) -> RemoteVault:
    """The vault of a destination, through a shell; on this machine if a test says so."""
    host = getattr(request, "param", "me@nas")
    remote = RemoteHost(host, config.locks_dir)
    there = RemoteVault(config, Destination(host, "backup/off"), remote, f"{tmp_path}/a b/vault")
    there.claim()
    return there


@pytest.fixture
def take(config: Config, manifest: Build) -> Callable[[int], RestorePoint]:
    """Points of one guest: in each some records differ from the one before."""
    return lambda hour: make_point(config, manifest, hour)


def make_point(config: Config, manifest: Build, hour: int) -> RestorePoint:
    directory = config.vault_dir / "web" / f"h{hour}"
    directory.mkdir(parents=True)
    write_pages(directory / PAGES, hour)
    (directory / REST).write_bytes(b"device state %d" % hour)
    (directory / DOMAIN_XML).write_text("<domain/>")
    with (directory / PAGES).open("rb") as file:
        digest = page_image.RecordDigest()
        for place, record in page_image.records(file.fileno()):
            digest.add(place, record)
    rest = hashlib.sha256((directory / REST).read_bytes()).hexdigest()
    memory = Memory(
        PAGES, "raw", "none", LENGTH, USED, digest.hexdigest(), rest_file=REST, rest_sha256=rest
    )
    own = manifest(
        uuid=UUID, domain="web", run=f"h{hour}", capture=f"{UUID}.0000000{hour}", memory=memory,
        created=f"2026-11-20T0{hour}:00:00+00:00",
    )  # fmt: skip
    point = RestorePoint(directory, own)
    vault.rewrite(point, own)
    return point


def write_pages(path: Path, hour: int) -> None:
    """Every hour 4 % of the records get one other page, and one gets zeros."""
    places = random.Random(0).sample(range(RECORDS), FULL)
    content = {place: random.Random(place).randbytes(RECORD) for place in places}
    for each in range(1, hour + 1):
        changing = random.Random(f"hour {each}")
        for place in changing.sample(places, FULL // 25):
            content[place] = changing.randbytes(4096) + content[place][4096:]
        content[places[each]] = bytes(RECORD)
    with path.open("wb") as file:
        file.truncate(LENGTH)
        for place, record in content.items():
            if any(record):
                file.seek(place * RECORD)
                file.write(record)


def put(there: RemoteVault, point: RestorePoint, base: RestorePoint | None = None) -> int:
    transfer = PointTransfer(point, point.directory.name, point.manifest, with_memory=True)
    return there.put(transfer, bwlimit="", base=base)


def arrived(there: RemoteVault, point: RestorePoint) -> Path:
    """Its pages there, which are complete, and the only ones."""
    path = Path(there.path) / "web" / point.directory.name
    assert (path / PAGES).read_bytes() == (point.directory / PAGES).read_bytes()
    names = (PAGES, REST, DOMAIN_XML, "manifest.json")
    modes = {each.name: oct(each.stat().st_mode)[-3:] for each in path.iterdir()}
    assert modes == dict.fromkeys(names, "600")
    assert [each for each in path.parent.iterdir() if each.name.startswith(".")] == []
    return path / PAGES


def used_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("there", ["", "me@nas"], indirect=True)
def test_only_what_differs_goes_over(
    there: RemoteVault, take: Callable[[int], RestorePoint]
) -> None:
    first_bytes = put(there, take(0))
    assert USED < first_bytes < 1.03 * USED
    (base,), _ = there.read()
    second = take(1)
    second_bytes = put(there, second, base)
    # 4 pages, and a checksum for each of 1024.
    assert 4 * 4096 < second_bytes < 0.04 * first_bytes
    pages = arrived(there, second)
    # One record has become zeros: no hole, unless the file system compresses.
    assert used_bytes(pages) <= used_bytes(second.directory / PAGES) + RECORD + SLACK
    points, _ = there.read()
    assert newest_pages(points, UUID) == points[-1]
    assert points[-1].manifest == second.manifest


def test_without_an_older_image_holes_do_not_go_over(
    there: RemoteVault, take: Callable[[int], RestorePoint]
) -> None:
    point = take(0)
    put(there, point)
    assert used_bytes(arrived(there, point)) <= used_bytes(point.directory / PAGES) + SLACK


POOR = [
    pytest.param({"cp": "echo no space >&2; exit 1"}, USED - RECORD, id="cannot copy"),
    pytest.param(
        {"cp": 'eval "last=\\${$#}"; echo half > "$last"; exit 1'}, USED - RECORD, id="half"
    ),
    pytest.param({"truncate": "exit 127", "cp": "exit 1"}, LENGTH, id="no truncate"),
]


@pytest.mark.parametrize(("programs", "at_least_bytes"), POOR)
def test_destinations_that_cannot_do_it(
    there: RemoteVault,
    take: Callable[[int], RestorePoint],
    program: Say,
    programs: dict[str, str],
    at_least_bytes: int,
) -> None:
    put(there, take(0))
    (base,), _ = there.read()
    for name, script in programs.items():
        program(name, script)
    second = take(1)
    sent_bytes = put(there, second, base)
    assert at_least_bytes < sent_bytes < at_least_bytes + USED / 10
    arrived(there, second)


@pytest.mark.parametrize(
    ("sizes", "how"), [("131072 16384", "--reflink=never"), ("16384 16384", "--reflink=auto")]
)
def test_no_clone_where_the_base_has_other_records_than_new_files(
    there: RemoteVault,
    take: Callable[[int], RestorePoint],
    program: Say,
    tmp_path: Path,
    sizes: str,
    how: str,
) -> None:
    put(there, take(0))
    (base,), _ = there.read()
    cp, stat = shutil.which("cp"), shutil.which("stat")
    program("stat", f'case $2 in %o) printf "%s\\n" {sizes};; *) exec {stat} "$@";; esac')
    program("cp", f'echo "$@" > {tmp_path}/said; exec {cp} "$@"')
    second = take(1)
    assert put(there, second, base) < 0.04 * USED
    arrived(there, second)
    assert how in (tmp_path / "said").read_text()


def test_base_that_is_damaged_or_gone_there(
    there: RemoteVault, take: Callable[[int], RestorePoint]
) -> None:
    put(there, take(0))
    (base,), _ = there.read()
    with (Path(there.path) / "web/h0" / PAGES).open("r+b") as file:
        file.write(os.urandom(LENGTH // 2))
    second, third = take(1), take(2)
    put(there, second, base)
    arrived(there, second)
    shutil.rmtree(Path(there.path) / "web/h0")
    put(there, third, base)
    arrived(there, third)


def test_interrupted_while_it_goes_over(
    there: RemoteVault,
    take: Callable[[int], RestorePoint],
    program: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has arrived is kept: it is cloned once, and what is there does not go over again."""
    put(there, take(0))
    (base,), _ = there.read()
    second = take(1)
    send = there._send

    def cut(paths: list[Path], directory: Any, *rest: str) -> int:
        if paths[0].name == PAGES:
            half = (second.directory / PAGES).read_bytes()[: LENGTH // 2]
            with (Path(directory) / PAGES).open("r+b") as file:
                file.write(half)
            raise DestinationUnreachable("nas: cut")
        return send(paths, directory, *rest)

    with monkeypatch.context() as context:
        context.setattr(there, "_send", cut)
        with pytest.raises(DestinationUnreachable):
            put(there, second, base)
    assert len(there.read()[0]) == 1
    program("cp", "exit 1")
    assert put(there, second, base) < 0.04 * USED
    arrived(there, second)


@pytest.mark.parametrize("dies_at", ["cp", "truncate", "mv"])
def test_a_half_clone_is_not_taken_for_good(
    there: RemoteVault,
    take: Callable[[int], RestorePoint],
    monkeypatch: pytest.MonkeyPatch,
    dies_at: str,
) -> None:
    put(there, take(0))
    (base,), _ = there.read()
    second = take(1)
    process = RemoteHost.process

    def cut(self: RemoteHost, words: Sequence[str], given: bytes = b"") -> CompletedProcess[bytes]:
        if words[0] == dies_at:
            new = next(word for word in words if word.endswith(f"{PAGES}.new"))
            with Path(new).open("ab") as file:
                file.truncate(LENGTH // 3)
            raise DestinationUnreachable("nas: cut")
        return process(self, words, given)

    with monkeypatch.context() as context:
        context.setattr(RemoteHost, "process", cut)
        with pytest.raises(DestinationUnreachable):
            put(there, second, base)
    assert len(there.read()[0]) == 1
    assert put(there, second, base) < 0.04 * USED
    arrived(there, second)


def test_ram_that_is_not_wanted_any_more(
    there: RemoteVault, take: Callable[[int], RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DestinationUnreachable("nas: cut")

    point = take(0)
    with monkeypatch.context() as context:
        context.setattr(there, "_verify", fail)
        with pytest.raises(DestinationUnreachable):
            put(there, point)
    bare = point.manifest.without_memory("no")
    there.put(PointTransfer(point, "h0", bare, with_memory=False), bwlimit="")
    names = {path.name for path in (Path(there.path) / "web/h0").iterdir()}
    assert names == {DOMAIN_XML, "manifest.json"}


def test_pages_that_are_damaged_here_are_not_sent(
    there: RemoteVault, take: Callable[[int], RestorePoint]
) -> None:
    point = take(0)
    with (point.directory / PAGES).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ImageUnloadable, match="does not match its checksum"):
        put(there, point)
    assert not list(Path(there.path).rglob(PAGES))


def test_pages_that_are_changed_on_their_way(
    there: RemoteVault, take: Callable[[int], RestorePoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rsync says that all is well, and is wrong: the file goes, and is sent anew."""
    verify = there._verify

    def spoil(directory: Any, sums: dict[str, str]) -> None:
        with (Path(directory) / PAGES).open("ab") as file:
            file.write(b"x")
        verify(directory, sums)

    point = take(0)
    with monkeypatch.context() as context:
        context.setattr(there, "_verify", spoil)
        with pytest.raises(RemoteFailed, match="another checksum"):
            put(there, point)
    assert there.read() == ([], []) and not list(Path(there.path).rglob(PAGES))
    put(there, point)
    arrived(there, point)


def test_back_again(
    there: RemoteVault, take: Callable[[int], RestorePoint], tmp_path: Path
) -> None:
    older, newer = take(0), take(1)
    put(there, newer)
    (point,), _ = there.read()
    for number, base in enumerate((None, older)):
        fetched = tmp_path / str(number)
        fetched.mkdir()
        there.get_memory(point, fetched, base)
        assert sorted(path.name for path in fetched.iterdir()) == [PAGES, REST]
        for path in fetched.iterdir():
            assert path.read_bytes() == (newer.directory / path.name).read_bytes()
        # One record has become zeros, as above.
        assert used_bytes(fetched / PAGES) <= used_bytes(newer.directory / PAGES) + RECORD + SLACK


@pytest.mark.parametrize("said", ["", "x", "-1", "99999999999999999", "1e9", "1 2", "²"])
def test_no_length(program: Say, tmp_path: Path, said: str) -> None:
    program("stat", f"printf '%s' {shlex.quote(said)}")
    assert ram_copy.length_bytes("/x", RemoteHost("nas", tmp_path)) == 0


def test_a_length_that_is_a_lie(
    there: RemoteVault, take: Callable[[int], RestorePoint], program: Say, tmp_path: Path
) -> None:
    point = take(0)
    put(there, point)
    program("stat", f"echo {LENGTH * 3}")
    (remote_point,), _ = there.read()
    there.get_memory(remote_point, tmp_path)
    assert (tmp_path / PAGES).read_bytes() == (point.directory / PAGES).read_bytes()


BLOCKS = [(0, 4), (32 << 30, 4), ((32 << 30) + 1, 8), (256 << 30, 32), (16 << 40, 128)]


@pytest.mark.parametrize(("length_bytes", "kib"), BLOCKS)
def test_blocks(length_bytes: int, kib: int) -> None:
    assert f"--block-size={kib << 10}" in ram_copy.options(PAGES, length_bytes)
