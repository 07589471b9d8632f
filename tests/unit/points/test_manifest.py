"""Many manifests are decoded as each by itself is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zvmsnap.common import json_file
from zvmsnap.points.manifest import Alike, Disk, Manifest, OtherState, SnapshotRef

Build = Callable[..., Manifest]
FROZEN = sorted((Path(__file__).parents[2] / "data/manifest/schema-2").glob("*.json"))
ODD = ("", "a", "../x", "a/../b", "/", "a\n", "a\0", "\x1b[2J", "é", "x" * 300, "a" * 5000, "@")


def alone(data: bytes) -> Manifest | str:
    """The manifest, or what is wrong with it."""
    try:
        decoded: Manifest = json_file.decode(data, Manifest)
        return decoded
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return str(error)


def alike(data: bytes, decoder: Alike) -> Manifest | str:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return str(error)


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_each_kind_of_manifest(path: Path) -> None:
    data, decoder = path.read_bytes(), Alike()
    assert decoder.decode(data) == decoder.decode(data) == json_file.decode(data, Manifest)


def everything(manifest: Build) -> Any:
    """A manifest that has a value in each field, as plain JSON."""
    return msgspec.json.decode(
        json_file.encoded(
            manifest(
                snapshots=(SnapshotRef("tank/web", "a", 1, 2, "tank/new", 3, 4),),
                disks=(Disk("vda", "file", "qcow2", "/x", "tank/web", "x"),),
                other_state=(OtherState("its share", "/srv", "tank/srv", "a/b", "no"),),
                tpm_warning="none",
                seal="00",
                absent_memory="ab",
            )
        )
    )


def places(said: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value of JSON is."""
    for key, value in said.items() if isinstance(said, dict) else enumerate(said):
        yield said, key
        if isinstance(value, dict | list):
            yield from places(value)


def test_each_text_is_checked(manifest: Build) -> None:
    """Whatever stands in whatever field, it is taken or refused as of one manifest alone."""
    decoder, refused = Alike(), set()
    decoder.decode(json.dumps(everything(manifest)).encode())
    for number, _ in enumerate(places(everything(manifest))):
        for odd in ODD:
            said = everything(manifest)
            inside, key = list(places(said))[number]
            if not isinstance(inside[key], str):
                continue
            inside[key] = odd
            data = json.dumps(said).encode()
            expected = alone(data)
            # Twice: what is refused once is not known after that.
            assert alike(data, decoder) == alike(data, decoder) == expected
            if isinstance(expected, str):
                refused.add(key)
    assert refused >= {"domain", "uuid", "capture", "dataset", "name", "file", "sha256", "path"}


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte(manifest: Build, data: st.DataObject) -> None:
    content, decoder = bytearray(json.dumps(everything(manifest)).encode()), Alike()
    decoder.decode(bytes(content))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert alike(bytes(content), decoder) == alone(bytes(content))


def test_fields_of_newer_and_older_versions(manifest: Build) -> None:
    said = everything(manifest) | {"invented": {"a": [1]}}
    for missing in ("other_state", "seal", "absent_memory", "encrypted", "tpm_warning"):
        del said[missing]
    data = json.dumps(said).encode()
    assert Alike().decode(data) == json_file.decode(data, Manifest)


def test_what_manifests_have_in_common_is_kept_once(manifest: Build) -> None:
    decoder = Alike()
    one, other = (
        decoder.decode(json_file.encoded(manifest(run=run, reason=run))) for run in ("a", "b")
    )
    assert one != other
    assert one.host is other.host
    assert one.disks is other.disks
    assert one.uuid is other.uuid
    assert one.memory and other.memory and one.memory.file is other.memory.file
    assert one.snapshots[0].dataset is other.snapshots[0].dataset
