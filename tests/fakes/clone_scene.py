"""What tests of clones share: making one, and proving that nothing is left of it."""

from tests.fakes.restore_scene import DATASET, Scene
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.journal.operation import CloneOperation
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint


def make(scene: Scene, point: RestorePoint, options: CloneOptions | None = None) -> CloneOperation:
    """A clone, w2 if nothing else is said."""
    operation = plan_clone(scene.config, scene.host, point, options or CloneOptions("w2"))
    CloneCreation(scene.config, scene.host, operation).run()
    return operation


def nothing_left(scene: Scene) -> bool:
    """Is all as if no clone had ever been made?"""
    vaulted = {path.name for path in (scene.config.vault_dir / "web").iterdir()}
    return (
        list(scene.world.pool) == ["tank", DATASET]
        and [guest.name for guest in scene.host.guests()] == ["web"]
        and (scene.operations(), scene.staged()) == ([], [])
        and not any(name.startswith(vault.LOADING) for name in vaulted)
    )
