"""A conversation as the chat command keeps it. Pure: no terminal, no network."""

import json
from pathlib import Path

from shared.domain.errors import InvalidRequest

Message = dict[str, str]


class Conversation:
    """Turns of user and assistant under an optional system prompt."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """The messages to send, with the system prompt first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        self.turns.clear()

    def undo(self) -> bool:
        """Forget the last question and its answer. Return False if there is no question."""
        question = self.regenerate()
        if question is None:
            return False
        self.turns.pop()
        return True

    def regenerate(self) -> str | None:
        """Forget the last answer only. Return its question, or None if there is none."""
        while self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return self.turns[-1]["content"] if self.turns else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Load a saved conversation. For any other file, raise InvalidRequest and change nothing."""
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
            turns = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{path} is not a saved conversation: {error}") from error
        self.system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        self.turns = turns
