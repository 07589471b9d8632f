from tests.fakes.backup_scene import scene as scene
