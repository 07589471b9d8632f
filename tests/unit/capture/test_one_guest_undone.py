import pytest

from tests.fakes.capture_scene import (
    CRASH,
    PREPARED,
    QUIESCED,
    WHOLE,
    Fault,
    Scene,
    agent_of,
    failing,
    half_an_image,
    no_dump,
    no_freeze,
    no_overlay,
    pre_freeze_fails,
    thaws_under_the_overlay,
    with_scripts,
)
from zvmsnap.common.errors import Cancelled
from zvmsnap.finalize import after_snapshot
from zvmsnap.points.manifest import DOMAIN_XML

UNDONE = [
    pytest.param(
        "paused,crash",
        no_dump,
        [
            *("> dump", "allow 30", "snapshot", "allow 300"),
            *("> undo dump", "> resume or thaw", "> tidy", "> undo staging"),
        ],
        id="dump",
    ),
    pytest.param(
        "paused,crash",
        half_an_image,
        [
            *("> dump", "allow 30", "snapshot"),
            *("> undo dump", "> resume or thaw", "resume", "allow 300", "> tidy", "> undo staging"),
        ],
        id="header, when it is paused",
    ),
    pytest.param(
        "memory,crash",
        half_an_image,
        [
            *(
                "> read header",
                "> undo dump",
                "> commit",
                "commit vda",
                "> release vda",
                "pivot vda",
            ),
            *("> tidy", "> undo staging"),
        ],
        id="read header, on its overlay",
    ),
    pytest.param(
        "quiesced,crash",
        pre_freeze_fails,
        [
            "> pre-freeze",
            "require watchdog",
            "> undo pre-freeze",
            "> resume or thaw",
            "> tidy",
            "> undo staging",
        ],
        id="pre-freeze",
    ),
    pytest.param(
        "quiesced,crash",
        no_freeze,
        [
            *("> freeze", "freeze", "> undo freeze", "> resume or thaw", "thaw", "> tidy"),
            "> undo staging",
        ],
        id="freeze: who knows what it has done",
    ),
    pytest.param(
        "quiesced,crash",
        no_overlay,
        [
            *("> overlay", "disk snapshot", "> undo freeze", "> resume or thaw", "thaw", "> tidy"),
            "> undo staging",
        ],
        id="overlay",
    ),
    pytest.param(
        "quiesced,crash",
        thaws_under_the_overlay,
        [
            *("> overlay", "disk snapshot", "> thaw", "thaw", "> undo freeze", "> commit"),
            *("commit vda", "> release vda", "pivot vda", "> tidy", "> undo staging"),
        ],
        id="thaw, on its overlay",
    ),
]


@pytest.mark.parametrize(("mode", "fault", "undone"), UNDONE)
def test_undone_at_once(scene: Scene, mode: str, fault: Fault, undone: list[str]) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    fault(scene, guest)
    assert scene.pre()
    first = scene.trace.index(undone[0])
    assert scene.trace[first:] == [*undone, *PREPARED, "> waiting"]


def test_post_thaw_follows_a_pre_freeze_that_failed(scene: Scene) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "quiesced"}
    pre_freeze_fails(scene, guest)
    assert not scene.pre()
    assert (scene.root / "ran").read_text() == "pre\npost\n"
    assert guest.calls == []


@pytest.mark.parametrize("overlay", [False, True])
def test_post_thaw_follows_the_thaw(scene: Scene, overlay: bool) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "quiesced"}
    with_scripts(scene, guest)
    scene.change(quiesce_overlay=overlay)
    assert scene.pre()
    # Nobody makes a database wait for ZFS where the guest itself does not.
    assert (scene.root / "ran").read_text() == ("pre\npost\n" if overlay else "pre\n")
    after_snapshot.finish_interrupted(scene.config, scene.host, guest, scene.entries()[0])
    assert (scene.root / "ran").read_text() == "pre\npost\n"


def test_what_cannot_be_undone_is_undone_by_the_next_hook(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "quiesced,paused,crash"}

    def freeze() -> int:
        agent_of(guest).frozen, agent_of(guest).answering = True, False
        return 2

    scene.patch.setattr(agent_of(guest), "freeze", freeze)
    assert not scene.pre()
    (entry,) = scene.entries()
    assert (entry.level, entry.frozen, entry.step) == (QUIESCED, True, "resume or thaw")
    assert agent_of(guest).frozen and guest.paused_because is None
    assert (
        "and could not be undone: freeze: resume or thaw: its file systems may be frozen"
        in caplog.text
    )
    # What its point of level crash is made of, when it can be thawed.
    staging = entry.directory(scene.config.staging_dir)
    assert (staging / "point" / DOMAIN_XML).exists()
    agent_of(guest).answering = True
    after_snapshot.finish_interrupted(scene.config, scene.host, guest, entry)
    scene.assert_at_rest()


@pytest.mark.parametrize(
    ("mode", "change", "line"),
    [
        pytest.param(mode, change, line, id=f"{name}: {line or 'before anything'}")
        for name, mode, change, _, trace in WHOLE
        for line in ("", *trace)
    ],
)
def test_cancelled(scene: Scene, mode: str, change: Fault, line: str) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    change(scene, guest)
    if line:
        scene.when[line] = scene.cancelled.set
    else:
        scene.cancelled.set()
    with pytest.raises(Cancelled):
        scene.pre()
    assert scene.entries() == []
    scene.assert_at_rest()
    ran = scene.root / "ran"
    assert not ran.exists() or ran.read_text() == "pre\npost\n"


@pytest.mark.parametrize(
    ("mode", "change", "call"),
    [
        pytest.param(mode, change, call, id=f"{name}: {call}")
        for name, mode, change, _, trace in WHOLE
        for call in trace
        if call in ("allow 30", "snapshot", "freeze", "disk snapshot", "thaw")
    ],
)
def test_any_call_that_fails(scene: Scene, mode: str, change: Fault, call: str) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": f"{mode},crash"}
    change(scene, guest)
    guest.at[call] = failing("no")
    assert scene.pre()
    (entry,) = scene.entries()
    scene.assert_at_rest(but=entry)
    # A thaw is tried again.
    assert (entry.level is CRASH) is (call != "thaw")
