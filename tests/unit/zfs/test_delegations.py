import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.ssh import HERE
from zvmsnap.zfs import belongings, programs, zfs
from zvmsnap.zfs.belongings import Delegation, Who

TOLD = """\
---- Permissions on tank/web -----------------------------------------
Permission sets:
\t@mine destroy,snapshot
Create time permissions:
\tdestroy
Local permissions:
\tuser offsite send
\tuser (unknown: 54321) rollback
\tgroup DOMAIN\\domain users mount
Descendent permissions:
\teveryone hold
Local+Descendent permissions:
\tuser offsite @mine,hold
---- Permissions on tank ---------------------------------------------
Local+Descendent permissions:
\tuser joe send
"""
OF_WEB = (
    Delegation(("-s", "@mine"), "destroy,snapshot"),
    Delegation(("-c",), "destroy"),
    Delegation(("-l", "-u", "offsite"), "send"),
    Delegation(("-l", "-u", "54321"), "rollback"),
    Delegation(("-l", "-g", "DOMAIN\\domain users"), "mount"),
    Delegation(("-d", "-e"), "hold"),
    Delegation(("-u", "offsite"), "@mine,hold"),
)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("tank/web", OF_WEB),
        ("tank", (Delegation(("-u", "joe"), "send"),)),
        # Neither is of these.
        ("tank/web-", ()),
        ("tank/we", ()),
    ],
)
def test_parse(dataset: str, expected: tuple[Delegation, ...]) -> None:
    assert belongings.parse_delegations(dataset, TOLD) == expected
    assert belongings.parse_delegations(dataset, "") == ()


SAID = """\
---- Permissions on tank/web -----------------------------------------
Permission sets:
\t@mine destroy,snapshot
Create time permissions:
\trollback
Local permissions:
\tuser offsite send,mount
Descendent permissions:
\tgroup staff mount
\teveryone hold
Local+Descendent permissions:
\tuser offsite @mine,@above
---- Permissions on tank ---------------------------------------------
Permission sets:
\t@above receive,@more
\t@more promote,@above
Local permissions:
\tuser offsite share
Descendent permissions:
\tuser offsite clone
Local+Descendent permissions:
\tuser joe create
"""


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (Who("offsite", frozenset()), "@above @mine @more clone destroy promote receive snapshot"),
        (
            Who("offsite", frozenset({"staff"})),
            "@above @mine @more clone destroy mount promote receive snapshot",
        ),
        (Who("joe", frozenset({"offsite"})), "create"),
        (Who("ann", frozenset({"staff"})), ""),
    ],
)
def test_what_a_user_may_here_and_below(
    who: Who, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "output", lambda *_words, remote: SAID.encode())
    assert belongings.may("tank/web", who, HERE) == frozenset(expected.split())


def test_long_name() -> None:
    name = "tank/" + "w" * 200
    told = f"---- Permissions on {name} \nLocal permissions:\n\teveryone send\n"
    assert belongings.parse_delegations(name, told) == (Delegation(("-l", "-e"), "send"),)


@pytest.mark.parametrize(
    "line", ["New permissions:\n\tuser x send", "Local permissions:\n\trole x y"]
)
def test_what_is_not_understood(line: str) -> None:
    with pytest.raises(ZfsFailed, match=r"is not understood: '(user x send|role x y)'"):
        belongings.parse_delegations("tank/web", f"---- Permissions on tank/web ---\n{line}\n")


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def command(*words: str) -> str:
        calls.append(words)
        return TOLD

    monkeypatch.setattr(zfs, "command", command)
    assert belongings.delegations_of(["tank/web"]) == {"tank/web": OF_WEB}
    belongings.grant("tank/w", OF_WEB[2])
    belongings.revoke("tank/w", OF_WEB[0])
    assert calls == [
        ("allow", "tank/web"),
        ("allow", "-l", "-u", "offsite", "send", "tank/w"),
        ("unallow", "-s", "@mine", "destroy,snapshot", "tank/w"),
    ]
