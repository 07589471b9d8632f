from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.hooks import sanoid
from zvmsnap.journal.request import HookCall, Role

T = "autosnap_2026-11-20_03:00:00"
HOURLY, DAILY, MONTHLY = f"{T}_hourly", f"{T}_daily", f"{T}_monthly"
DST_HOURLY = f"{T}dst_hourly"

Environment = dict[str, str]


def before_2_1(dataset: str, name: str) -> Environment:
    """All four hooks' environment in 2.0.x; the prune hook's in every version."""
    return {"SANOID_TARGET": dataset, "SANOID_SNAPNAME": name}


def since_2_1(script: str, dataset: str, *names: str, **more: str) -> Environment:
    return {
        "SANOID_SCRIPT": script,
        "SANOID_TARGET": dataset,
        "SANOID_TARGETS": dataset,
        "SANOID_SNAPNAME": f"{dataset}@{names[0]}" if script == "post" else names[0],
        "SANOID_SNAPNAMES": ",".join(names),
        "SANOID_TYPES": ",".join(name.rpartition("_")[2] for name in names),
        **more,
    }


HOOK_CALLS = [
    pytest.param(
        Role.PRE,
        before_2_1("tank/web", HOURLY),
        HookCall(Role.PRE, ("tank/web",), (HOURLY,)),
        id="2.0 pre: bare name, singular",
    ),
    pytest.param(
        Role.POST,
        before_2_1("tank/web", HOURLY),
        HookCall(Role.POST, ("tank/web",), (HOURLY,)),
        id="2.0 post: bare name, singular",
    ),
    pytest.param(
        Role.PRE,
        before_2_1("tank/web", f"{T}_y_hourly"),
        HookCall(Role.PRE, ("tank/web",), (f"{T}_y_hourly",)),
        id="2.0.1 pre: clock set back",
    ),
    pytest.param(
        Role.PRE,
        since_2_1("pre", "tank/web", HOURLY),
        HookCall(Role.PRE, ("tank/web",), (HOURLY,)),
        id="2.1 to 2.3 pre: one type",
    ),
    pytest.param(
        Role.PRE,
        since_2_1("pre", "tank/web", MONTHLY, DAILY, HOURLY),
        HookCall(Role.PRE, ("tank/web",), (MONTHLY, DAILY, HOURLY)),
        id="2.1 to 2.3 pre: three types",
    ),
    pytest.param(
        Role.POST,
        since_2_1("post", "tank/web", DAILY, HOURLY, SANOID_PRE_FAILURE="0"),
        HookCall(Role.POST, ("tank/web",), (DAILY, HOURLY)),
        id="2.1 to 2.3 post: full name in the singular",
    ),
    pytest.param(
        Role.POST,
        since_2_1("post", "tank/web", HOURLY, SANOID_PRE_FAILURE="1"),
        HookCall(Role.POST, ("tank/web",), (HOURLY,), pre_failed=True),
        id="2.1 to 2.3 post: pre failed",
    ),
    pytest.param(
        Role.POST,
        since_2_1("post", "tank/web", HOURLY) | {"SANOID_SNAPNAME": f"tank/web@{DST_HOURLY}"},
        HookCall(Role.POST, ("tank/web",), (HOURLY, DST_HOURLY)),
        id="2.1 to 2.3 post: renamed after the fact",
    ),
    pytest.param(
        Role.POST,
        since_2_1("post", "tank/web", DAILY, HOURLY)
        | {"SANOID_SNAPNAMES": f"tank/web@{DAILY},tank/web@{HOURLY}"},
        HookCall(Role.POST, ("tank/web",), (DAILY, HOURLY)),
        id="post: full names in the plural",
    ),
    pytest.param(
        Role.PRUNE,
        {**before_2_1("tank/web", HOURLY), "SANOID_SCRIPT": "prune"},
        HookCall(Role.PRUNE, ("tank/web",), (HOURLY,)),
        id="2.1 to 2.3 prune",
    ),
    pytest.param(
        Role.PRUNE,
        before_2_1("tank/web", DST_HOURLY),
        HookCall(Role.PRUNE, ("tank/web",), (DST_HOURLY,)),
        id="prune: a renamed one",
    ),
    pytest.param(
        Role.PRE,
        since_2_1("pre", "tank/My VMs/web 1", HOURLY),
        HookCall(Role.PRE, ("tank/My VMs/web 1",), (HOURLY,)),
        id="blanks in the dataset",
    ),
    pytest.param(
        Role.POST,
        since_2_1("post", "tank/a:b-c_d.e", HOURLY),
        HookCall(Role.POST, ("tank/a:b-c_d.e",), (HOURLY,)),
        id="every mark a dataset may hold",
    ),
    pytest.param(
        Role.PRE,
        before_2_1("tank", "by hand"),
        HookCall(Role.PRE, ("tank",), ("by hand",)),
        id="a pool, a name of no type",
    ),
    pytest.param(
        Role.PRE,
        since_2_1("pre", "tank/web", HOURLY)
        | {"SANOID_TARGETS": "tank/web,tank/db,tank/web", "SANOID_SNAPNAMES": f"{HOURLY},{HOURLY}"},
        HookCall(Role.PRE, ("tank/web", "tank/db"), (HOURLY,)),
        id="several datasets, repetitions",
    ),
    pytest.param(
        Role.PRE,
        before_2_1("tank/web", HOURLY) | {"SANOID_TARGETS": "", "SANOID_SNAPNAMES": ""},
        HookCall(Role.PRE, ("tank/web",), (HOURLY,)),
        id="empty plurals count as unset",
    ),
    pytest.param(
        Role.PRE,
        before_2_1("tank/web", HOURLY) | {"SANOID_SNAPNAMES": f",{DAILY}, ,{HOURLY},"},
        HookCall(Role.PRE, ("tank/web",), (DAILY, HOURLY)),
        id="empty words in a list",
    ),
    pytest.param(
        Role.POST,
        before_2_1("tank/web", HOURLY) | {"SANOID_PRE_FAILURE": ""},
        HookCall(Role.POST, ("tank/web",), (HOURLY,)),
        id="empty PRE_FAILURE",
    ),
]


@pytest.mark.parametrize(("role", "environment", "expected"), HOOK_CALLS)
def test_environment_of_each_version(
    role: Role, environment: Environment, expected: HookCall
) -> None:
    assert sanoid.hook_call(role, environment) == expected


REFUSALS = [
    pytest.param({}, "SANOID_TARGET is not set", id="nothing"),
    pytest.param({"SANOID_TARGET": "tank"}, "SANOID_SNAPNAME is not set", id="no name"),
    pytest.param({"SANOID_SNAPNAME": HOURLY}, "SANOID_TARGET is not set", id="no dataset"),
    pytest.param(before_2_1("", HOURLY), "SANOID_TARGET is not set", id="empty dataset"),
    pytest.param(before_2_1(",,", HOURLY), "SANOID_TARGET is not set", id="only commas"),
    pytest.param(before_2_1("tank", " "), "SANOID_SNAPNAME is not set", id="blank name"),
    pytest.param(before_2_1("/tank", HOURLY), "'/tank' is not a name", id="leading slash"),
    pytest.param(before_2_1("tank/", HOURLY), "'tank/' is not a name", id="trailing slash"),
    pytest.param(before_2_1("tank//a", HOURLY), "'tank//a' is not a name", id="empty component"),
    pytest.param(before_2_1("tank/../a", HOURLY), "'tank/../a' is not", id="dots"),
    pytest.param(before_2_1("tank/.", HOURLY), "'tank/.' is not a name", id="dot"),
    pytest.param(before_2_1("-r", HOURLY), "'-r' is not a name", id="an option"),
    pytest.param(before_2_1("1tank", HOURLY), "'1tank' is not a name", id="pool begins with digit"),
    pytest.param(before_2_1("tank/a@b", HOURLY), "'tank/a@b' is not", id="snapshot as dataset"),
    pytest.param(before_2_1("tank/ä", HOURLY), "'tank/ä' is not a name", id="not ASCII"),
    pytest.param(before_2_1("tank\n", HOURLY), r"'tank\n' is not a name", id="line break"),
    pytest.param(before_2_1("t" * 256, HOURLY), "is not a name", id="too long"),
    pytest.param(before_2_1("tank", "../../etc"), "'../../etc' is not a name", id="path as name"),
    pytest.param(before_2_1("tank", "a%b"), "'a%b' is not a name", id="percent"),
    pytest.param(before_2_1("tank", "tank@"), "'' is not a name", id="at and no name"),
    pytest.param(before_2_1("tank", "@a"), "'@a' is no snapshot of", id="at and no dataset"),
    pytest.param(before_2_1("tank", "home@a"), "'home@a' is no snapshot of", id="another dataset"),
    pytest.param(before_2_1("tank", "tank@a@b"), "'tank@a@b' is no snapshot", id="two ats"),
    pytest.param(before_2_1("tank", "\udcff"), r"'\udcff' is not a name", id="not even text"),
]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("environment", "says"), REFUSALS)
def test_refused_with_one_line(role: Role, environment: Environment, says: str) -> None:
    with pytest.raises(HookEnvironmentInvalid) as caught:
        sanoid.hook_call(role, environment)
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_post_refuses_a_singular_that_contradicts_the_plural() -> None:
    environment = since_2_1("post", "tank/web", HOURLY) | {"SANOID_SNAPNAME": f"tank/db@{HOURLY}"}
    with pytest.raises(HookEnvironmentInvalid, match="is no snapshot of SANOID_TARGET 'tank/web'"):
        sanoid.hook_call(Role.POST, environment)


NEARLY_RIGHT = st.sampled_from(["tank", "tank/web", "tank,tank/web", "@", ",", HOURLY, f"tank@{T}"])
TEXTS = st.one_of(st.text(), NEARLY_RIGHT, st.tuples(NEARLY_RIGHT, st.text()).map("".join))
VARIABLES = ("TARGET", "TARGETS", "SNAPNAME", "SNAPNAMES", "TYPES", "SCRIPT", "PRE_FAILURE")


@given(
    st.sampled_from(Role),
    st.dictionaries(st.sampled_from([f"SANOID_{name}" for name in VARIABLES]), TEXTS),
)
def test_any_environment_is_a_call_or_refused(role: Role, environment: Environment) -> None:
    try:
        call = sanoid.hook_call(role, environment)
    except HookEnvironmentInvalid as error:
        assert len(str(error).splitlines()) == 1
        return
    assert call.datasets
    assert call.names
    assert call.run
    for text in (*call.datasets, *call.names):
        assert text.isascii()
        assert text.isprintable()
        assert "@" not in text
    assert not any("/" in name for name in call.names)


PERL = ("/usr/bin/perl", "/usr/sbin/sanoid")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(("--cron",), "", id="none"),
        pytest.param(("--configdir", "/etc/vm"), "/etc/vm", id="next word"),
        pytest.param(("--cron", "--configdir=/etc/vm", "-v"), "/etc/vm", id="equals"),
        pytest.param(("--configdir=/a=b",), "/a=b", id="equals in the path"),
        pytest.param(("-configdir", "/etc/vm"), "/etc/vm", id="one dash"),
        pytest.param(("--conf", "/etc/vm"), "/etc/vm", id="abbreviated"),
        pytest.param(("--co", "/etc/vm"), "/etc/vm", id="as short as can be"),
        pytest.param(("--ConfigDir=/etc/vm",), "/etc/vm", id="capitals"),
        pytest.param(("--configdir=/a", "--configdir=/b"), "/b", id="twice"),
        pytest.param(("--cache-dir", "/configdir"), "", id="another option"),
        pytest.param(("--configdirs", "/etc/vm"), "", id="longer word"),
        pytest.param(("--configdir",), "", id="value missing"),
        pytest.param(("--", "--configdir=/etc/vm"), "", id="after the options"),
    ],
)
def test_configdir_in_the_command_line(words: tuple[str, ...], expected: str) -> None:
    assert sanoid.option((*PERL, *words), "configdir") == expected


def test_cache_dir_in_the_command_line() -> None:
    words = (*PERL, "--cron", "--configdir=/a", "--cache-d", "/b", "--cache-ttl=3")
    assert sanoid.option(words, "cache-dir") == "/b"


# What tells sanoid, in its own text.
MARKS = "Config::IniFiles zfs_recursion SANOID_TARGET"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(("/usr/bin/perl", "/usr/sbin/sanoid", "--cron"), PERL, id="perl"),
        pytest.param(("perl", "-w", "/usr/sbin/sanoid"), ("perl", "-w", PERL[1]), id="option"),
        pytest.param(("sanoid", "--cron"), ("sanoid",), id="in PATH"),
        pytest.param(("./sanoid",), ("{cwd}/sanoid",), id="relative"),
        pytest.param(("perl", "sanoid"), ("perl", "{cwd}/sanoid"), id="relative script"),
        pytest.param(("perl", ".sanoid-x", "-x"), ("perl", "{cwd}/.sanoid-x"), id="wrapped"),
        pytest.param(("/perl5.36", "-T", "a.pl"), ("/perl5.36", "-T", "{cwd}/a.pl"), id="own name"),
        pytest.param(("perl", "other.pl"), (), id="another Perl script"),
        pytest.param(("perl", "gone.pl"), (), id="a script that is gone"),
        pytest.param(("perl", "directory"), (), id="no script"),
        pytest.param(("perl", "-e", "1"), (), id="perl -e"),
        pytest.param(("perl",), (), id="perl alone"),
        pytest.param(("bash", "a.pl"), (), id="read by another program"),
        pytest.param(("vi", "a", "b", "/etc/sanoid"), (), id="a file of that name"),
        pytest.param((), (), id="nothing"),
    ],
)
def test_what_starts_sanoid(
    tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    for name in (".sanoid-x", "a.pl"):
        (tmp_path / name).write_text(MARKS)
    (tmp_path / "other.pl").write_text("print 'sanoid'")
    (tmp_path / "directory").mkdir()
    assert sanoid.program(words, tmp_path) == tuple(each.format(cwd=tmp_path) for each in expected)
