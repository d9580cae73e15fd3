"""`/undo`, `/regen`, `/save` and `/load` change a conversation as they say."""

from pathlib import Path

import pytest

from cli.conversation import Conversation
from shared.domain.errors import InvalidRequest


def talked() -> Conversation:
    conversation = Conversation(system="be brief")
    for n in (1, 2):
        conversation.ask(f"q{n}")
        conversation.answer(f"a{n}")
    return conversation


def test_undo_forgets_the_last_question_and_answer() -> None:
    conversation = talked()

    assert conversation.undo()
    assert [turn["content"] for turn in conversation.turns] == ["q1", "a1"]
    assert conversation.undo()
    assert not conversation.undo()


def test_regenerate_forgets_the_answer_alone() -> None:
    conversation = talked()

    assert conversation.regenerate() == "q2"
    assert conversation.messages[-1] == {"role": "user", "content": "q2"}


def test_what_is_saved_is_loaded_with_its_system_prompt(tmp_path: Path) -> None:
    talked().save(tmp_path / "c.json")
    loaded = Conversation()

    loaded.load(tmp_path / "c.json")

    assert loaded.messages == talked().messages
    assert loaded.system == "be brief"


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '[{"role": "user"}]'])
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    conversation = talked()

    with pytest.raises(InvalidRequest):
        conversation.load(tmp_path / "c.json")

    assert conversation.messages == talked().messages
