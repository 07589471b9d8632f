"""What is read plainly is what the parser reads, and nothing that it refuses."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import zvmsnap
from zvmsnap.common.errors import ConfigInvalid
from zvmsnap.config import plain, settings
from zvmsnap.config.settings import Config

EXAMPLE = Path(zvmsnap.__file__).parents[1] / "config.toml.example"

# Lines that are plain, and such that almost are.
LINES = st.sampled_from(
    [
        *EXAMPLE.read_text().splitlines(),
        *(f"[{name}]" for name in ("modes", "image", "limits", "mode", " limits ")),
        *("[[destination]]", "[[destination]] # b", "[destination]", "[[destinations]]") * 3,
        *(
            f"target = '{text}'"
            for text in (
                *("nas:backup", "me@nas.lan:backup/off-site", "backup/x") * 3, "", "nas:", ":b",
                "-nas:b", "nas:-b", "nas:b/../c", "nas:b//c", "@nas:b", "a b:c", "9@nas:b", "a:b:c",
                "nas:9b", ".nas:b", "n\u00e4s:b", "nas:b/", "b/c ", "a@b", "x" * 201, "_u@nas:b",
            )
        ),
        *(
            f"guests = {text}"
            for text in (
                "[]", "[ ]", '["web"]', "['web', \"db\"]", '["web",]', "['web' # x]", '["a#b"]',
                '"web"', "[web]", "['web'] # x", "['a' 'b']", "[['a']]", "['a', 1]", "['a,b']", "[",
            )
        ),
        *(
            f"bwlimit = '{text}'"
            for text in ("", "50M", "5", "0", "k", "5K", "5kk", "-5", "\u0663")
        ),
        *("memory = 'all'", "memory = 'some'", "raw = true", "use_hold = false", "raw = 1"),
        *(
            f"{key} = {value}"
            for key in ("vault", "journal", "locks", "uri", "sanoid_configdir", "staging", '"uri"')
            for value in (
                '"/v"', "'/v'", '"v"', '""', "''", '"/v" # w', '"/v"w', "'/v", '"""/v"""', "'''",
                '"/v\\n"', "'/v\\n'", '"/ü"',
                '"/v#"', '"/v\tw"', "/v", "1", '"/v\x7f"', '"/\u00a0"',
            )
        ),
        *(
            f"{key} = {value}"
            for key in ("mode", "hourly", "manual", "compression", "often")
            for value in (
                '"memory"', "'crash,required'", '"required"', '"memory,memory"', '"memory, crash"',
                '"offline"', '"zstd"', '"auto"', '""', '"off"',
            )
        ),
        *(
            f"{key}={value}"
            for key in (
                "pause_first_ms", "pause_max_ms", "parallel_dumps", "max_freeze_s", "zstd_level",
                "overlay_room_mib", "quiesce_overlay", "max_freeze", "dump_max_ram_ratio",
            )
            for value in (
                "0", "1", "20", "007", "1.5", "1.", ".5", "0.0", "-1", "+1", "1_0", "1e3", "inf",
                "nan", "true", "True", "false", "23", "1 # s", "1 2", "", "99999999999999999999",
                "٣", "0x1", "2000",
            )
        ),
        "", "#", "# \x07", "# ü", "# \u200e", " \t", "\r", "vualt = 1", "vault", "= 1", "a.b = 1",
        "vault = \"/a\" journal = \"/b\"", "]", "[limits", "[limits] # those", "[limits] 1",
    ]
)  # fmt: skip


def parsed(tmp_path: Path, text: bytes) -> Config | None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    try:
        return settings.load_settings(path)
    except ConfigInvalid:
        return None


def as_plain(config: Config) -> dict[str, str]:
    return {key: getattr(config, key) for key in plain.DEFAULTS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@given(st.lists(LINES, max_size=6), st.sampled_from(["\n", "\r\n", "\r", "\u2028"]))
@example(["[limits]", "pause_first_ms=2000"], "\n")
@example(["[limits]", "pause_max_ms=20"], "\n")
@example(["[limits]", "pause_first_ms=20", "pause_max_ms=1"], "\n")
@example(["[limits]", "[image]", "[limits]"], "\n")
@example(['vault = "/v"', "vault = '/v'"], "\n")
def test_what_is_plain_is_read_as_by_the_parser(
    directory: Path, lines: list[str], ending: str
) -> None:
    text = ending.join(lines).encode()
    read = plain.read(text)
    config = parsed(directory, text)
    assert read is None or (config is not None and read == as_plain(config))


def test_bytes_that_are_no_text() -> None:
    assert plain.read(b"# \xff\n") is None
    assert plain.read("\ufeffmode = 'crash'\n".encode()) is None


@pytest.mark.parametrize("of", ["whole", "with a destination", *plain._TABLES])
def test_the_example_is_plain(tmp_path: Path, of: str) -> None:
    text = EXAMPLE.read_bytes()
    if of == "with a destination":
        begins = text.index(b"#[[destination]]")
        text = text[:begins] + text[begins:].replace(b"\n#", b"\n").replace(b"#", b"", 1)
    elif of != "whole":
        text = b"[" + of.encode() + b"]" + text.partition(b"[" + of.encode() + b"]")[2]
        text = text.partition(b"\n[")[0]
    config = parsed(tmp_path, text)
    assert config
    assert plain.read(text) == as_plain(config)


def test_every_key_is_known_to_both() -> None:
    tables = {
        "": Config,
        "image": settings.Image,
        "limits": settings.Limits,
        "destination": settings.DestinationTable,
    }
    keys = {(table, key) for table, kind in tables.items() for key in kind.__struct_fields__}
    made_otherwise = {("", key) for key in ("modes", "image", "limits", "destination")}
    assert {each for each in plain._KINDS if each[0] != "modes"} == keys - made_otherwise


def test_changed_values(tmp_path: Path) -> None:
    text = b"vault = '/v' # mine\n\njournal=\"/j j\"\n[limits]\nmax_freeze_s = 1.5\n"
    config = parsed(tmp_path, text)
    assert config
    assert plain.read(text) == as_plain(config)
    assert (config.vault, config.journal) == ("/v", "/j j")


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.toml"
    assert plain.settings({"ZVMSNAP_CONFIG": str(missing)}) is None
    assert str(settings.DEFAULT_PATH) == plain.DEFAULT_PATH
    monkeypatch.setattr(plain, "DEFAULT_PATH", str(missing))
    assert plain.settings({}) == as_plain(Config())
    with pytest.raises(OSError):
        plain.settings({"ZVMSNAP_CONFIG": str(tmp_path)})
