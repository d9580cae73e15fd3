"""The campaign of all engines names what takes part, and its known answers can be continued anywhere."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from bench.chaos.__main__ import main
from bench.chaos.engine_kinds import PACKAGES, EngineKind, kinds_of
from bench.chaos.known_answers import FIRST_TOKEN, TOKENS, left_of, parts
from bench.chaos.mixed_site import MixedSite
from bench.chaos.mock_server import chat_chunks, text_chunks
from workers.loading.loaders import LOADERS, class_of_its_own, engine_of
from workers.loading.model_spec import BUILTIN


def kinds(**python_of: str) -> list[EngineKind]:
    return kinds_of(python_of, urls=["http://127.0.0.1:1/v1"], builtin=BUILTIN, gguf=Path("model.gguf"))


def engines(kind: EngineKind) -> set[str]:
    """Return the engines of a kind's workers."""
    found = set()
    for group in kind.groups:
        arguments = [each.removeprefix("--engine=") for each in group.arguments if each.startswith("--engine=")]
        found.add(str(group.settings.get("engine", "")) or "".join(arguments) or engine_of(group.source or group.model))
    return found


def test_every_engine_takes_part() -> None:
    found = set().union(*map(engines, kinds(llamacpp=sys.executable, vllm=sys.executable)))

    assert found >= LOADERS.keys()
    assert any(class_of_its_own(engine) for engine in found - LOADERS.keys())


def test_an_engine_without_its_packages_is_left_out_alone() -> None:
    names, every = ({kind.name for kind in found} for found in (kinds(), kinds(llamacpp="a", vllm="b")))

    assert every - names == set(PACKAGES)


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for value in (f"vllm={tmp_path / 'none'}", f"torch={sys.executable}", sys.executable):
        refused = CliRunner().invoke(main, ["--engine=mixed", f"--python={value}"])

        assert refused.exit_code == 2
        assert "'--python'" in refused.output


def test_an_interpreter_without_the_mixed_campaign_is_refused() -> None:
    refused = CliRunner().invoke(main, [f"--python=vllm={sys.executable}"])

    assert refused.exit_code == 2
    assert "--engine mixed" in refused.output


def test_a_known_answer_is_continued_after_any_of_its_characters() -> None:
    _, words = parts("Why?", {})
    whole = "".join(words)

    assert all(said + "".join(left_of(words, said)) == whole for said in (whole[:at] for at in range(len(whole) + 1)))
    with pytest.raises(ValueError, match="does not begin"):
        left_of(words, "something else")


def test_a_mock_server_goes_on_after_the_beginning_that_it_is_given() -> None:
    question = {"role": "user", "content": "Why?"}
    whole = said(chat_chunks({"messages": [question]}))

    rest = said(chat_chunks({"messages": [question, {"role": "assistant", "content": whole[:33]}]}))

    assert whole[:33] + rest == whole
    assert said(text_chunks({"prompt": f"Why?{whole[:33]}"})) == rest


def test_a_server_of_tokens_makes_tokens_of_text_alone() -> None:
    """Special tokens would be no text, and bytes might be half a character."""
    tokenizer = Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))

    texts = [tokenizer.decode([token]) for token in range(FIRST_TOKEN, FIRST_TOKEN + TOKENS)]

    assert all(text and "\ufffd" not in text for text in texts)


@pytest.mark.parametrize("kind", kinds(llamacpp="a", vllm="b"), ids=lambda kind: kind.name)
def test_every_kind_is_asked_plain_chats_and_all_but_one_must_answer_whatever_dies(kind: EngineKind) -> None:
    asked = kind.requests()

    assert any(each.plain for each in asked)
    assert any(not each.excused for each in asked) == (kind.name != "restart")


def said(chunks: object) -> str:
    """Join the text of a server's chunks."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def test_the_site_has_a_model_of_each_kind(tmp_path: Path) -> None:
    site = MixedSite(tmp_path / "site", tmp_path, python_of={})

    assert site.models == [kind.name for kind in site.kinds]
    assert site.workers_max == sum(group.count for kind in site.kinds for group in kind.groups)
