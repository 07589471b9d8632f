"""As sanoid 2.1, 2.2 and 2.3 themselves resolve them: these were asked, with the same files."""

from pathlib import Path

import pytest

from zvmsnap.common.errors import SanoidConfInvalid
from zvmsnap.config import sanoid_conf
from zvmsnap.config.sanoid_conf import DEFAULTS, Policy

FILES = Path(__file__).parents[2] / "data" / "sanoid_conf"
DATASETS = ("tank", "tank/vm", "tank/vm/web", "tank/vm/web/data", "tank/db")
OLD, NEW, NEWEST = (2, 1, 0), (2, 2, 0), (2, 3, 0)
TEMPLATE = "\n[template_p]\nautosnap = yes\nhourly = 4\n"


def resolved(text: str, version: tuple[int, ...] = NEW) -> dict[str, Policy]:
    def below(top: str) -> list[str]:
        return [name for name in DATASETS if name.startswith(f"{top}/")]

    return sanoid_conf.resolve(sanoid_conf.parse(text), DEFAULTS, below, version)


def recursive(text: str, version: tuple[int, ...] = NEW) -> list[str]:
    """The datasets of which it takes recursive snapshots."""
    return sorted(name for name, each in resolved(text, version).items() if each.is_recursive)


def alone(text: str, version: tuple[int, ...] = NEW) -> list[str]:
    policies = resolved(text, version).items()
    return sorted(name for name, each in policies if each.takes and not each.is_recursive)


# What the file of that name makes it take recursively, before 2.2 and from then on.
JUDGED = {
    "child_zfs_parent_yes": (["tank/vm", "tank/vm/web", "tank/vm/web/data"],) * 2,
    "crlf": (["tank/vm"], ["tank/vm"]),
    "dup_zfs_then_no": ([], ["tank/vm"]),
    "equals_equals": (["tank/vm"], ["tank/vm"]),
    "heredoc": (["tank/vm"], ["tank/vm"]),
    "latin1_comment": (["tank/vm"], ["tank/vm"]),
    "nested_zfs": (["tank"], ["tank"]),
    "quoted_value": (["tank/vm"], ["tank/vm"]),
    "skip_children_zfs": (["tank/vm"], ["tank/vm"]),
    "template_zfs": ([], []),
    "use_template_zfs_list": (["tank/vm"], ["tank/vm"]),
}


@pytest.mark.parametrize("name", JUDGED)
def test_as_sanoid_does(name: str) -> None:
    text = (FILES / f"{name}.conf").read_bytes().decode(errors="surrogateescape")
    assert (recursive(text, OLD), recursive(text, NEW)) == JUDGED[name]


def test_all_files_are_judged() -> None:
    assert {path.stem for path in FILES.iterdir()} == JUDGED.keys()


def test_below_a_recursive_dataset() -> None:
    policies = resolved(f"[tank/vm]\nuse_template = p\nrecursive = zfs\n{TEMPLATE}")
    assert sorted(policies) == ["tank/vm", "tank/vm/web", "tank/vm/web/data"]
    inner = policies["tank/vm/web"]
    assert (inner.is_below, inner.takes, inner.parent) == (True, False, "tank/vm")
    assert inner.counts["hourly"] == 4


def test_recursive_yes_takes_each_alone() -> None:
    text = f"[tank/vm]\nuse_template = p\nrecursive = yes\n{TEMPLATE}"
    assert (recursive(text), alone(text)) == ([], ["tank/vm", "tank/vm/web", "tank/vm/web/data"])


def test_a_blank_belongs_to_the_value_before_2_3() -> None:
    text = "[tank/vm]\nrecursive = yes \n"
    assert alone(text, NEW) == ["tank/vm"]
    assert alone(text, NEWEST) == ["tank/vm", "tank/vm/web", "tank/vm/web/data"]


def test_what_is_neither_yes_nor_no_is_on() -> None:
    text = "[tank/vm]\nautosnap = no \n"
    assert (alone(text, NEW), alone(text, NEWEST)) == (["tank/vm"], [])
    # Too late: the template stands behind the section.
    text = "[tank/vm]\nuse_template = p\n[template_p]\nautosnap = no \n"
    assert alone(text, NEWEST) == ["tank/vm"]


def test_a_child_before_its_parent_is_overwritten() -> None:
    text = "[tank/vm/web]\nscript_timeout = 0\n[tank/vm]\nrecursive = yes\nscript_timeout = 9\n"
    policies = resolved(text)
    assert policies["tank/vm/web"].keys["script_timeout"] == "9"
    assert policies["tank/vm/web"].parent == "tank/vm"


def test_user_default_template_and_local_keys() -> None:
    text = "[template_default]\nscript_timeout = 0\nhourly = 1\n[tank/db]\nhourly = 7\n"
    own = resolved(text)["tank/db"]
    assert (own.keys["script_timeout"], own.counts["hourly"], own.counts["daily"]) == ("0", 7, 90)


def test_children_only() -> None:
    text = "[tank/vm]\nprocess_children_only = yes\nrecursive = yes\n"
    assert alone(text) == ["tank/vm/web", "tank/vm/web/data"]


def test_path() -> None:
    own = resolved("[web]\npath = tank/vm/web\n")["web"]
    assert (own.dataset, own.path) == ("web", "tank/vm/web")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("# nothing\n", "it is empty"),
        ("hourly = 3\n", "line 1: a key before the first"),
        ("[tank]\nhello\n", "line 2 is neither"),
        ("[tank]\npath = <<EOT\ntank\n", "line 2: the text that begins here has no end 'EOT'"),
        ("\ufeff[tank]\nhourly = 3\n", "line 1 is neither"),
    ],
)
def test_what_sanoid_does_not_start_with(text: str, says: str) -> None:
    with pytest.raises(SanoidConfInvalid) as caught:
        sanoid_conf.parse(text)
    assert says in str(caught.value)


def test_unknown_keys_and_templates() -> None:
    ini = sanoid_conf.parse("[tank]\nhuorly = 3\nuse_template = p,q\n[template_p]\n")
    assert sanoid_conf.unknown_keys(ini, DEFAULTS) == [("tank", "huorly")]
    assert sanoid_conf.missing_templates(ini) == [("tank", "q")]


def test_defaults_file() -> None:
    text = "[version]\nversion = 2\n[template_default]\nhourly = 48\npath =\n"
    assert sanoid_conf.defaults_of(text) == {"hourly": "48", "path": ""}
