import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from zvmsnap.common.errors import ConfigInvalid
from zvmsnap.config import settings
from zvmsnap.config.settings import Config, DestinationTable, Image, Limits, load_settings

EXAMPLE = Path(__file__).parents[3] / "config.toml.example"


def test_the_example_holds_every_key_with_its_default() -> None:
    assert tomllib.loads(EXAMPLE.read_text()) | {"destination": ()} == msgspec.to_builtins(Config())


def test_the_destination_in_the_example_is_commented_out() -> None:
    text = EXAMPLE.read_text()
    table = re.sub(r"^#(?![ #\n])", "", text[text.index("#[[") :], flags=re.M)
    (parsed,) = tomllib.loads(table)["destination"]
    assert parsed.keys() == set(DestinationTable.__struct_fields__)
    given = DestinationTable("offsite@nas:backup/offsite", ("web",))
    assert msgspec.convert(parsed, DestinationTable) == given


def test_the_example_is_valid() -> None:
    assert load_settings(EXAMPLE, {}) == Config()


def test_some_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('vault = "/big"\n[image]\ncompression = "zstd"\n[limits]\ncommit_timeout_s=5\n')
    assert load_settings(path, {}) == Config(
        vault="/big", image=Image(compression="zstd"), limits=Limits(commit_timeout_s=5)
    )


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    modes = "[modes]\ndaily = 'memory,required'\nmanual = 'crash'"
    path.write_text(f"mode = 'quiesced,crash'\n{modes}")
    assert load_settings(path, {}).default_modes == {
        "": "quiesced,crash",
        "daily": "memory,required",
        "manual": "crash",
    }
    assert Config().default_modes == {"": "memory"}


@pytest.mark.parametrize(
    ("value", "kept"), [("24", "24"), ("'24'", "24"), ("'36h'", "36h"), ("'all'", "all")]
)
def test_how_long_ram_is_kept(tmp_path: Path, value: str, kept: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"keep_memory = {value}\n[[destination]]\ntarget='a/b'\nkeep_memory={value}")
    settings = load_settings(path, {})
    assert str(settings.default_keep) == str(settings.destination[0].keep) == kept


@pytest.mark.parametrize(
    ("key", "property_name"),
    [
        ("staging", "staging_dir"),
        ("vault", "vault_dir"),
        ("journal", "journal_dir"),
        ("locks", "locks_dir"),
    ],
)
def test_directories(key: str, property_name: str) -> None:
    settings = msgspec.structs.replace(Config(), **{key: "/x/y"})
    assert getattr(settings, property_name) == Path("/x/y")


REFUSED = [
    pytest.param("stagign = '/a'", "stagign", id="unknown key"),
    pytest.param("[limits]\npause_ms = 3", "pause_ms", id="unknown key in a table"),
    pytest.param("[limit]\npause_max_ms = 3", "limit", id="unknown table"),
    pytest.param("vault = 3", "$.vault", id="number for a path"),
    pytest.param("[limits]\npause_max_ms = '3'", "$.limits.pause_max_ms", id="text for a number"),
    pytest.param("[limits]\npause_max_ms = 3.5", "$.limits.pause_max_ms", id="half a millisecond"),
    pytest.param("limits = 3", "$.limits", id="number for a table"),
    pytest.param("[image]\ncompression = 'gzip'", "$.image.compression", id="no such compression"),
    pytest.param("[image]\nzstd_level = 23", "$.image.zstd_level", id="zstd level too high"),
    pytest.param("[image]\nzstd_level = 0", "zstd_level", id="zstd level nought"),
    pytest.param("vault = 'points'", "vault must be an absolute path", id="relative path"),
    pytest.param("staging = ''", "staging must be an absolute path", id="empty path"),
    pytest.param("journal = '~/j'", "journal must be an absolute path", id="home"),
    pytest.param("locks = 'run'", "locks must be an absolute path", id="relative locks"),
    pytest.param("[[destination]]\nguests = []", "target", id="destination without target"),
    pytest.param("[[destination]]\ntarget = '-x:a'", "is no destination", id="no destination"),
    pytest.param(
        "[[destination]]\ntarget = 'a/b'\nbwlimit = '5x'", "is no bandwidth", id="no bandwidth"
    ),
    pytest.param(
        "[[destination]]\ntarget = 'a/b'\nencrypt_to = ['AGE-X']", "is no public key", id="secret"
    ),
    pytest.param(
        "[[destination]]\ntarget = 'a/b'\nrecipients_file = 'x'", "absolute", id="no file"
    ),
    pytest.param("[[destination]]\ntarget = 'a'\nmemory = 'x'", "memory", id="no such memory"),
    pytest.param("keep_memory = '2w'", "keep_memory: '2w' says not", id="no time to keep"),
    pytest.param("keep_memory = 0", "keep_memory: '0' says not", id="keep none"),
    pytest.param("keep_memory = true", "$.keep_memory", id="keep true"),
    pytest.param(
        "[[destination]]\ntarget = 'a'\nkeep_memory = -1", "'-1' says not", id="keep -1 there"
    ),
    pytest.param("[limits]\nlock_timeout_s = 0", "lock_timeout_s must be more", id="no time"),
    pytest.param("[limits]\npause_max_ms = -1", "pause_max_ms must be more", id="negative"),
    pytest.param("[limits]\npause_max_ms = 29", "pause_first_ms is more than", id="max < first"),
    pytest.param("[limits]\ncommit_timeout_s = nan", "commit_timeout_s", id="not a number"),
    pytest.param("guest_scripts = 'guest.d'", "guest_scripts must be an absolute", id="scripts"),
    pytest.param("mode = 'ram'", "mode 'ram': 'ram' is no level", id="no such level"),
    pytest.param("mode = 'off'", "mode 'off': 'off' is no level", id="off"),
    pytest.param("mode = ''", "mode '': '' is no level", id="no level"),
    pytest.param("[modes]\ndaily = 'x'", "modes.daily 'x': 'x' is no level", id="no such one"),
    pytest.param("[modes]\ndayly = 'crash'", "modes: 'dayly' is none of frequ", id="no type"),
    pytest.param("[modes]\n'' = 'crash'", "modes: '' is none of frequently", id="empty type"),
    pytest.param("[modes]\ndaily = 3", "$.modes", id="number for a mode"),
    pytest.param(
        "[limits]\nmax_freeze_s = 0", "max_freeze_s must be more", id="no time to be frozen"
    ),
    pytest.param("[limits]\nfreeze_timeout_s = 1.5", "freeze_timeout_s", id="libvirt's seconds"),
    pytest.param("uri = 'a'\nvault = \n", "line 2", id="no TOML"),
    pytest.param("vault = '/a'\nvault = '/b'\n", "line 2", id="twice"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(path, {})
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: None, "no such configuration file"),
    ("a directory", lambda path: path.mkdir(), "cannot be read: Is a directory"),
    ("no text", lambda path: path.write_bytes(b'vault = "\xff"'), "utf-8"),
]


@pytest.mark.parametrize(
    ("make", "says"), [case[1:] for case in UNREADABLE], ids=[case[0] for case in UNREADABLE]
)
@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_unreadable(
    tmp_path: Path, make: Callable[[Path], object], says: str, named_by: str
) -> None:
    path = tmp_path / "config.toml"
    make(path)
    with pytest.raises(ConfigInvalid) as caught:
        if named_by == "argument":
            load_settings(path, {})
        else:
            load_settings(None, {"ZVMSNAP_CONFIG": str(path)})
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("environment", [{}, {"ZVMSNAP_CONFIG": ""}], ids=["unset", "empty"])
def test_default_file_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "none.toml")
    assert load_settings(None, environment) == Config()


def test_argument_goes_before_environment_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("argument", "environment", "default"):
        (tmp_path / name).write_text(f"uri = '{name}'")
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "default")
    environment = {"ZVMSNAP_CONFIG": str(tmp_path / "environment")}
    assert load_settings(tmp_path / "argument", environment).uri == "argument"
    assert load_settings(None, environment).uri == "environment"
    assert load_settings(None, {}).uri == "default"


@pytest.fixture
def conf_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of further files, beside the default one."""
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "config.toml")
    (tmp_path / "conf.d").mkdir()
    return tmp_path / "conf.d"


def test_files_of_conf_d_are_read_in_order(conf_d: Path) -> None:
    (conf_d.parent / "config.toml").write_text(
        'vault = "/a"\nmode = "crash"\n[limits]\npause_max_ms = 50\ncommit_timeout_s = 7\n'
        '[[destination]]\ntarget = "nas:a/b"\n'
    )
    (conf_d / "20-b.toml").write_text('vault = "/c"\n[[destination]]\ntarget = "usb/b"\n')
    (conf_d / "10-a.toml").write_text('vault = "/b"\n[limits]\npause_max_ms = 60\n')
    (conf_d / "30.toml.bak").write_text("no TOML")
    read = load_settings(None, {})
    assert (read.vault, read.mode) == ("/c", "crash")
    assert (read.limits.pause_max_ms, read.limits.commit_timeout_s) == (60, 7)
    assert [each.target for each in read.destination] == ["nas:a/b", "usb/b"]
    assert [path.name for path in settings.files({})] == ["config.toml", "10-a.toml", "20-b.toml"]


def test_conf_d_alone(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('vault = "/b"\n')
    assert load_settings(None, {}).vault == "/b"


def test_a_fault_of_conf_d_names_its_file(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('valut = "/b"\n')
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(None, {})
    assert str(caught.value).startswith(f"{conf_d / 'a.toml'}: ") and "valut" in str(caught.value)


def test_files_that_are_well_alone_but_not_together(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text("[limits]\npause_max_ms = 50\n")
    (conf_d / "b.toml").write_text("[limits]\npause_first_ms = 40\n")
    assert load_settings(None, {}).limits.pause_first_ms == 40
    (conf_d / "b.toml").write_text("[limits]\npause_first_ms = 400\n")
    with pytest.raises(ConfigInvalid, match="pause_first_ms is more than pause_max_ms"):
        load_settings(None, {})


def test_a_file_that_is_named_is_read_alone(conf_d: Path, tmp_path: Path) -> None:
    (conf_d / "a.toml").write_text('vault = "/b"\n')
    own = tmp_path / "own.toml"
    own.write_text("")
    assert load_settings(own, {}) == Config()
    assert load_settings(None, {"ZVMSNAP_CONFIG": str(own)}) == Config()


@pytest.mark.parametrize(
    ("reserve_mib", "room_mib", "expected_mib"), [(256, 1024, 256), (256, 1, 1), (8, 8, 8)]
)
def test_reserve_is_no_more_than_was_made_sure_of(
    reserve_mib: int, room_mib: int, expected_mib: int
) -> None:
    limits = Limits(staging_reserve_mib=reserve_mib, overlay_room_mib=room_mib)
    assert limits.reserve_bytes == expected_mib << 20
