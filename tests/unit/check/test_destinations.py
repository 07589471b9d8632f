"""What is found of a destination that ssh reaches, by what the machine itself says."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fakes.check_scene import WEB, CheckedHost
from tests.fakes.nas import PERMISSIONS, ROOT, FakeNas
from zvmsnap.check import destinations
from zvmsnap.check.finding import Colour, Finding

NAS = f'[[destination]]\ntarget = "offsite@nas:{ROOT}"\nkeep_memory = 7\n'
GREEN, YELLOW, RED = Colour.GREEN, Colour.YELLOW, Colour.RED
Spoil = Callable[[FakeNas], object]


def of(host: CheckedHost, config: str = NAS) -> list[Finding]:
    """What is found of the destinations."""
    host.nas.write()
    host.config(config)
    return [each for each in host.findings() if each.check.startswith("destination.")]


def test_one_that_is_well(checked: CheckedHost) -> None:
    (found,) = of(checked)
    assert (found.colour, found.check, found.subject, found.text) == (
        GREEN,
        "destination.there",
        f"offsite@nas:{ROOT}",
        "has OpenZFS 2.3.2-2, and 1.0T free",
    )
    assert checked.trouble() == []
    assert {line.partition(": ")[0] for line in checked.nas.asked} == {"offsite@nas"}


def said(words: str, answer: str) -> Spoil:
    def spoil(nas: FakeNas) -> None:
        assert words in nas.said
        nas.said[words] = answer

    return spoil


def gone(words: str) -> Spoil:
    return lambda nas: nas.said.pop(words)


def prop(name: str, value: str) -> Spoil:
    return lambda nas: nas.properties[ROOT].__setitem__(name, value)


def pool(**changes: str) -> Spoil:
    return lambda nas: nas.pool(**changes)


def allowed(*lines: str, kind: str = "Local+Descendent permissions:") -> Spoil:
    return lambda nas: nas.allow(*lines, kind=kind)


def without_root(nas: FakeNas) -> None:
    nas.properties.clear()


def vault_of_another(nas: FakeNas) -> None:
    # Root may write anywhere but here.
    nas.properties[ROOT]["zvmsnap:vault"] = "/proc/zvmsnap/vault"


def nowhere(nas: FakeNas) -> None:
    nas.properties[ROOT] |= {"zvmsnap:vault": "-", "mounted": "no"}


PERMISSIONS_SORTED = ",".join(sorted(PERMISSIONS.split(",")))
PLANTED: list[tuple[str, Spoil, Colour, str, str]] = [
    ("away", lambda nas: (nas.root / "down").touch(), RED, "unreachable", "No route to host"),
    ("no zfs", gone("zfs version"), RED, "zfs", "in the path of the user's ssh commands"),
    ("old", said("zfs version", "zfs-0.8.3-1\n"), YELLOW, "zfs", "has OpenZFS 0.8.3-1"),
    ("no dataset", without_root, RED, "missing", f"zfs create -u -o canmount=off {ROOT}"),
    ("full", pool(capacity="96"), RED, "full", "is 96 % full"),
    ("nearly full", pool(capacity="88"), YELLOW, "full", "is 88 % full"),
    ("quota", prop("available", str(1 << 34)), RED, "full", "with 16G free"),
    ("degraded", pool(health="DEGRADED"), YELLOW, "degraded", "DEGRADED"),
    ("no health", pool(health=""), YELLOW, "degraded", "is of unknown health"),
    ("no vault", nowhere, RED, "vault", "where its vault is, is not known"),
    ("vault of another", vault_of_another, RED, "vault", "may not write to /proc/zvmsnap"),
    ("no block cloning", pool(block_cloning="disabled"), YELLOW, "block-cloning",
     "feature@block_cloning=enabled usb"),
    ("no permission", allowed(), RED, "allow", f"zfs allow offsite {PERMISSIONS_SORTED}"),
    ("no receive", allowed(f"\tuser offsite {PERMISSIONS.replace('receive,', '')}"), RED, "allow",
     "may not receive: nothing arrives"),
    ("no rename", allowed(f"\tuser offsite {PERMISSIONS.replace('rename,', '')}"), YELLOW, "allow",
     "may not rename: some sends fail"),
    ("not below", allowed(f"\tuser offsite {PERMISSIONS}", kind="Local permissions:"), RED, "allow",
     "nothing arrives"),
    ("of another user", allowed(f"\tuser other {PERMISSIONS}"), RED, "allow", "nothing arrives"),
    ("no name", said("id", "uid=4711 gid=0(root) groups=0(root)\n"), RED, "allow",
     f"zfs allow 4711 {PERMISSIONS_SORTED}"),
    ("no rsync", gone("rsync --version"), RED, "rsync", "apt install rsync"),
    ("senseless", said("id", "who?\n"), RED, "unanswered", "could not be looked at"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "colour", "check", "says"), [row[1:] for row in PLANTED], ids=[r[0] for r in PLANTED]
)
def test_what_is_wrong_there(
    checked: CheckedHost, spoil: Spoil, colour: Colour, check: str, says: str
) -> None:
    spoil(checked.nas)
    found = {each.check: each for each in of(checked)}
    assert found.keys() == {f"destination.{check}"}
    (finding,) = found.values()
    assert finding.colour is colour
    assert says in finding.line()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(allowed(f"\tgroup backup {PERMISSIONS}"), id="by its group"),
        pytest.param(allowed(f"\teveryone {PERMISSIONS}"), id="everyone"),
        pytest.param(said("id", "uid=0(root) gid=0(root) groups=0(root)\n"), id="root"),
    ],
)
def test_who_may_receive(checked: CheckedHost, spoil: Spoil) -> None:
    spoil(checked.nas)
    assert [each.colour for each in of(checked)] == [GREEN]


def test_answers_may_be_as_long_as_they_need(checked: CheckedHost) -> None:
    """A user in all groups of a directory service, and permissions of all of these."""
    groups = [f"{number}(group-{number})" for number in range(10_000)]
    checked.nas.said["id"] = f"uid=1001(offsite) gid=34(backup) groups={','.join(groups)}\n"
    checked.nas.allow(*(f"\tgroup group-{number} {PERMISSIONS}" for number in range(10_000)))
    (found,) = of(checked)
    assert found.check == "destination.there"
    assert not any("snapshot" in line or " list " in line for line in checked.nas.asked)


def test_an_answer_without_end_is_not_kept(checked: CheckedHost) -> None:
    checked.nas.said["id"] = "uid=1001(offsite) " * (1 << 19)
    (found,) = of(checked)
    assert (found.colour, found.check) == (RED, "destination.unreachable")
    assert "offsite@nas: id: ssh -o prints without end: given up after 4 MiB" in found.text


def test_what_comes_from_there_is_made_printable(checked: CheckedHost) -> None:
    checked.nas.said["zfs version"] = "zfs-\x1b[2J\nall is well\n"
    checked.nas.said["id"] = "uid=1001(\x1b[31moffsite) gid=7(x)\n"
    found = of(checked)
    assert {each.check for each in found} == {"destination.zfs", "destination.allow"}
    assert all(each.line().isprintable() for each in found)


def test_a_user_s_name_is_one_word_of_the_command(checked: CheckedHost) -> None:
    checked.nas.said["id"] = "uid=1001(x;reboot) gid=7(x)\n"
    (found,) = of(checked)
    assert "zfs allow 'x;reboot' canmount," in found.line()


def test_encrypted_guests_need_a_pool_that_takes_them(checked: CheckedHost) -> None:
    checked.datasets[WEB] = replace(checked.datasets[WEB], encrypted=True)
    checked.properties["cheap/vault"]["encryption"] = "aes-256-gcm"
    assert [each.colour for each in of(checked)] == [GREEN]
    checked.nas.pool(encryption="disabled")
    checked.nas.write()
    assert [each.check for each in checked.trouble()] == ["destination.encryption"]


def test_a_key_that_is_not_loaded_there(checked: CheckedHost) -> None:
    checked.nas.properties[ROOT] |= {"encryption": "aes-256-gcm", "keystatus": "unavailable"}
    (found,) = of(checked)
    assert (found.colour, found.check) == (RED, "destination.key")
    checked.config("raw = true")
    assert [each.check for each in checked.trouble()] == []


def test_ram_that_is_kept_for_ever(checked: CheckedHost) -> None:
    found = of(checked, NAS.replace("keep_memory = 7", ""))
    assert [each.check for each in found if each.colour is YELLOW] == ["destination.keep-memory"]
    checked.config('memory = "none"')
    assert checked.trouble() == []


def test_machines_that_are_silent_are_asked_at_once(
    checked: CheckedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of them take no longer than one; two on one machine are asked once."""
    monkeypatch.setattr(destinations, "_MACHINE_S", 1.0)
    (checked.nas.root / "silent").touch()
    targets = [f"nas{number}:{ROOT}" for number in (1, 2, 3, 4, 5)] + ["nas1:usb/too"]
    text = "".join(f'[[destination]]\ntarget = "{each}"\nmemory = "none"\n' for each in targets)
    found = of(checked, text)
    assert {each.subject for each in found} == set(targets)
    assert {each.check for each in found} == {"destination.unreachable"}
    assert all("no answer within 1 s" in each.text for each in found)
    asked = checked.nas.asked
    assert len(set(asked)) == len(asked)
