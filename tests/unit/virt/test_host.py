"""What a host knows of secrets."""

from typing import Any

import libvirt
import pytest

from tests.fakes.libvirt_module import Failure
from zvmsnap.virt.host import Host

MISSING, PRIVATE = "Secret not found", "secret is private"
CODES = {MISSING: 66, PRIVATE: libvirt.VIR_ERR_INVALID_SECRET}


class Secrets:
    """A connection to a libvirt with some secrets: `own`, by UUID or by kind and use."""

    def __init__(self, own: dict[object, str]) -> None:
        self._own = own

    def do(self, call: Any) -> Any:
        return call(self)

    def secretLookupByUUIDString(self, uuid: str) -> "Secret":  # noqa: N802 - libvirt's name
        return self._found(uuid)

    def secretLookupByUsage(self, kind: int, usage: str) -> "Secret":  # noqa: N802
        return self._found((kind, usage))

    def _found(self, key: object) -> "Secret":
        if key not in self._own:
            raise Failure(MISSING, CODES[MISSING])
        return Secret(self._own[key])


class Secret:
    """One of them; its value, or why nobody gets that."""

    def __init__(self, value: str) -> None:
        self._value = value

    def value(self, _flags: int) -> bytes:
        if self._value in CODES:
            raise Failure(self._value, CODES[self._value])
        return self._value.encode()


KNOWN: dict[object, str] = {
    "a": "opensesame",
    "b": PRIVATE,
    "c": MISSING,
    (1, "/a.img"): "x",
    (2, "vm"): "x",
}


@pytest.mark.parametrize(
    ("uuid", "kind", "usage", "why"),
    [
        ("a", "passphrase", "", None),
        ("b", "passphrase", "", None),
        ("c", "passphrase", "", MISSING),
        ("d", "passphrase", "", MISSING),
        ("", "passphrase", "/a.img", None),
        ("", "ceph", "vm", None),
        ("", "iscsi", "vm", MISSING),
        ("", "", "", MISSING),
    ],
)
def test_secrets(uuid: str, kind: str, usage: str, why: str | None) -> None:
    connection: Any = Secrets(KNOWN)
    assert Host(connection).why_no_secret(uuid, kind, usage) == why


class Backups:
    """A connection to a libvirt that notes which backups are begun."""

    def __init__(self) -> None:
        self.begun: list[tuple[object, ...]] = []

    def do(self, call: Any) -> Any:
        return call(self)

    def lookupByUUIDString(self, uuid: str) -> "Backups":  # noqa: N802 - libvirt's name
        self.begun.append((uuid,))
        return self

    def backupBegin(self, xml: str, checkpoint_xml: str | None, flags: int) -> None:  # noqa: N802
        self.begun[-1] += (xml, checkpoint_xml, flags)


def test_a_backup_with_its_checkpoint() -> None:
    connection: Any = Backups()
    host = Host(connection)
    host.begin_backup("u", "<domainbackup/>")
    host.begin_backup("u", "<domainbackup/>", "<domaincheckpoint/>")
    assert connection.begun == [
        ("u", "<domainbackup/>", None, 0),
        ("u", "<domainbackup/>", "<domaincheckpoint/>", 0),
    ]
