"""The agent in a guest, faked: it freezes the file systems."""

import json


class FakeAgent:
    """An agent, as QEMU's: it knows whether its file systems are frozen, and says it.

    While it does not answer, libvirt's calls end at their time limit, and nothing is done.
    """

    def __init__(self, file_systems: int = 2) -> None:
        self.file_systems = file_systems
        self.frozen = False
        self.connected = True
        self.answering = True
        self.forbidden: set[str] = set()

    @property
    def channel(self) -> str:
        """Its channel in the definition, as libvirt shows it."""
        state = "connected" if self.connected else "disconnected"
        name = "org.qemu.guest_agent.0"
        return (
            f"<channel type='unix'><target type='virtio' name='{name}' state='{state}'/></channel>"
        )

    def answer(self, question: str) -> str:
        """Its answer to a command."""
        command = json.loads(question)["execute"]
        verbs = [f"guest-fsfreeze-{verb}" for verb in ("freeze", "thaw", "status")]
        answers: dict[str, object] = {
            "guest-ping": {},
            "guest-fsfreeze-status": "frozen" if self.frozen else "thawed",
            "guest-info": {
                "supported_commands": [
                    {"name": verb, "enabled": verb not in self.forbidden} for verb in verbs
                ]
            },
        }
        return json.dumps({"return": answers[command]})

    def freeze(self) -> int:
        """Freeze all file systems; returns how many."""
        self.frozen = self.file_systems > 0
        return self.file_systems

    def thaw(self) -> int:
        """Thaw all file systems; returns how many were frozen."""
        count = self.file_systems if self.frozen else 0
        self.frozen = False
        return count
