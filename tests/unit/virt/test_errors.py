from collections.abc import Callable

import libvirt
import pytest

from tests.fakes.libvirt_module import Failure
from zvmsnap.common.errors import AgentSilent, LibvirtFailed
from zvmsnap.virt.connection import translated


def test_what_a_guest_says_in_an_error_is_one_short_line() -> None:
    """The description of an error of its agent, or the end of QEMU's log."""
    said = (
        "unable to execute QEMU agent command: \x1b]0;owned\x07\nzvmsnap: error: \u202e\x9b"
        + "x" * 10**6
    )
    with pytest.raises(AgentSilent) as caught, translated("web: asking its agent"):
        raise Failure(said, libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
    assert str(caught.value).startswith(
        r"web: asking its agent: unable to execute QEMU agent command: "
        r"\x1b]0;owned\x07 zvmsnap: error: \u202e\x9bxxx"
    )
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100


def _of_no_utf8() -> None:
    b"\xed\xa0\x80".decode()


def _as_the_binding_does() -> None:
    raise SystemError("<built-in function virGetLastError> returned a result with an exception set")


@pytest.mark.parametrize("call", [_of_no_utf8, _as_the_binding_does])
def test_what_the_binding_cannot_read_is_a_failure_of_that_call(call: Callable[[], None]) -> None:
    why = "web: starting: what it says is no UTF-8"
    with pytest.raises(LibvirtFailed, match=why), translated("web: starting"):
        call()
