"""What is read plainly is what the parser reads."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import zvmsnap
from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import ConfigInvalid
from zvmsnap.config import plain, settings
from zvmsnap.config.settings import Config

EXAMPLE = Path(zvmsnap.__file__).parents[1] / "config.toml.example"

# Lines that are plain, and such that almost are.
LINES = st.sampled_from(
    [
        *EXAMPLE.read_text().splitlines(),
        *(f"[{name}]" for name in ("modes", "image", "limits", "mode", " limits ", "a.b", '"a"')),
        *("[[destination]]", "[[destination]] # b", "[destination]"),
        *(
            f"{key} = {value}"
            for key in ("vault", "journal", "locks", "uri", '"vault"', "destination", "modes")
            for value in (
                *('"/v"', "'/v'", '"/v" # w', "'/v#'") * 3,
                *('"v"', '""', "''", '"/v"w', "'/v", '"""/v"""', "'''", '"""', "'''/v", "'''/v'''"),
                *('"/v\\n"', "'/v\\n'", '"/ü"', '"/v\tw"', "/v", "1", '"/v\x7f"', '"/\u00a0"'),
                *("[", "[[", "[]", "[['a']", "[ # ]", "{}", "{a = 1}", "{", '["a]",', "['#]']"),
            )
        ),
        *("guests = [", "guests = ['a',", "'b']", "]", "]]", "}", ", ['vault']", '"""', "'''"),
        *("", "#", "# \x07", "# ü", " \t", "\r", "vualt = 1", "vault", "= 1", "a.b = 1", "[limits"),
        *('vault = "/a" journal = "/b"', "vault = '/a'  vault", "  vault\t=\t'/w'"),
    ]
)


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
@example(["[limits]", "vault = '/w'"], "\n")
@example(['uri = """', "vault = '/v'", '"""'], "\n")
@example(["[[destination]]", "target = 'nas:b'", "guests = [['a']", "]"], "\n")
def test_what_is_plain_is_read_as_by_the_parser(
    directory: Path, lines: list[str], ending: str
) -> None:
    text = ending.join(lines).encode()
    read, config = plain.read(text), parsed(directory, text)
    assert read is None or config is None or read == as_plain(config)


@pytest.mark.parametrize(
    "text",
    [
        "vault = '/v'\nvault = '/w'",
        "vualt = '/v'",
        "vault = 'v'",
        'vault = "/v\\n"',
        "'vault' = '/v'",
        "uri = '''\nvault = '/v'\n'''",
        "mode.a = 1",
        "\ufeffmode = 'crash'",
    ],
)
def test_what_is_left_to_the_parser(text: str) -> None:
    assert plain.read(text.encode()) is None


def test_bytes_that_are_no_text() -> None:
    assert plain.read(b"# \xff\n") is None


def test_the_example_is_plain(tmp_path: Path) -> None:
    text = EXAMPLE.read_bytes()
    config = parsed(tmp_path, text)
    assert config and plain.read(text) == as_plain(config)


def test_a_file_with_destinations(tmp_path: Path) -> None:
    text = b"vault = '/v' # mine\n\njournal=\"/j j\"\n[limits]\nmax_freeze_s = 1.5\n"
    text += b"[[destination]]\ntarget = 'nas:b'\nguests = ['a', 'b'] # two\n"
    config = parsed(tmp_path, text)
    assert config and plain.read(text) == as_plain(config)
    assert (config.vault, config.journal) == ("/v", "/j j")


def test_keys_and_types_are_those_of_the_parser() -> None:
    made_otherwise = {"modes", "image", "limits", "monitor", "destination"}
    assert {*plain.DEFAULTS, *plain._OTHERS} == {*Config.__struct_fields__} - made_otherwise
    assert tuple(snapshot_name.TYPES) == plain.TYPES


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.toml"
    assert plain.settings({"ZVMSNAP_CONFIG": str(missing)}) is None
    assert str(settings.DEFAULT_PATH) == plain.DEFAULT_PATH
    monkeypatch.setattr(plain, "DEFAULT_PATH", str(missing))
    assert plain.settings({}) == as_plain(Config())
    with pytest.raises(OSError):
        plain.settings({"ZVMSNAP_CONFIG": str(tmp_path)})


def test_files_of_conf_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf_d = tmp_path / "conf.d"
    monkeypatch.setattr(plain, "DEFAULT_PATH", str(tmp_path / "config.toml"))
    monkeypatch.setattr(plain, "CONF_D", str(conf_d))
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "config.toml")
    assert f"{settings.CONF_D}" == conf_d.name
    conf_d.mkdir()
    (conf_d / "b.toml").write_text('vault = "/b"\n')
    assert plain.settings({}) == as_plain(settings.load_settings(None, {}))
    (tmp_path / "config.toml").write_text('vault = "/a"\njournal = "/j"\n')
    (conf_d / "a.toml").write_text('vault = "/c"\n# nothing\n[limits]\npause_max_ms = 50\n')
    assert plain.settings({}) == as_plain(settings.load_settings(None, {}))
    assert (plain.settings({}) or {})["vault"] == "/b"
    (conf_d / "c.toml").write_text('vault = """/d"""\n')
    assert plain.settings({}) is None
