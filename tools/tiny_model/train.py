"""Trains the built-in model: `python -m tools.tiny_model.train OUTPUT_FOLDER` trains it from random weights, and
`python -m tools.tiny_model.train OUTPUT_FOLDER --tools` continues with tools and JSON.

A Llama of about 3.5 million parameters learns the answers of `dialogues` (never the questions), then of `talks`. The
first takes about an hour on two CPU cores, the second half of that; the seed fixes data, initial weights and order.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.tiny_model.dialogues import dialogues
from tools.tiny_model.tokenizer import CHAT_TEMPLATE, make_tokenizer
from tools.tiny_model.tool_talks import Talk, talks

SEED = 20261121
VOCAB = 2048
WINDOW = 384
ROWS = 12
IGNORED = -100


def encode(tokenizer: PreTrainedTokenizerFast, talk: Talk) -> tuple[list[int], list[int]]:
    """Encode a talk as token ids and labels; only the assistant's words and their end mark are learned."""
    messages, tools = talk
    ids: list[int] = []
    labels: list[int] = []
    before = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _written(tokenizer, messages[:at], tools, add_generation_prompt=True)
        said = _written(tokenizer, messages[: at + 1], tools).removesuffix("\n")
        head = tokenizer.encode(asked.removeprefix(before), add_special_tokens=False)
        body = tokenizer.encode(said.removeprefix(asked), add_special_tokens=False)
        ids += head + body
        labels += [IGNORED] * len(head) + body
        before = said
    newline = tokenizer.encode("\n", add_special_tokens=False)
    return ids + newline, labels + [IGNORED] * len(newline)


def _written(tokenizer: PreTrainedTokenizerFast, messages: list[Any], tools: list[Any], **how: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, **how))


class Windows:
    """Yield batches of `ROWS` windows; every row begins with a new dialogue and is filled with further ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, source: Iterator[Talk]) -> None:
        self._tokenizer = tokenizer
        self._source = source

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self._row() for _ in range(ROWS)]
        ids, labels = zip(*rows, strict=True)
        return torch.tensor(ids), torch.tensor(labels)

    def _row(self) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < WINDOW:
            more_ids, more_labels = encode(self._tokenizer, next(self._source))
            ids += more_ids
            labels += more_labels
        return ids[:WINDOW], labels[:WINDOW]


def new_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / 60)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def begin() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    texts = [message["content"] for talk in islice(dialogues(SEED), 12_000) for message in talk]
    return new_model(), make_tokenizer([*texts, *["system", "user", "assistant"] * 50], VOCAB)


def go_on(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def train(folder: Path, steps: int, *, tools: bool) -> None:
    torch.manual_seed(SEED)
    model, tokenizer = go_on(folder) if tools else begin()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.05)
    windows = Windows(tokenizer, talks(SEED + 2) if tools else (([*talk], []) for talk in dialogues(SEED + 1)))
    peak = 1.5e-3 if tools else 2.5e-3
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    began, shown = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        ids, labels = windows.batch()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shown = loss.item() if step == 0 else 0.95 * shown + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"step {step} loss {shown:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if step and step % 500 == 0:
            save(model, tokenizer, folder)
    save(model, tokenizer, folder)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a plain Hugging Face model folder, with weights in half precision."""
    model.generation_config = GenerationConfig(
        pad_token_id=0, bos_token_id=1, eos_token_id=3, do_sample=True, temperature=0.6, top_p=0.9
    )
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tools", is_flag=True, help="Continue with the model in FOLDER, on tools and JSON.")
@click.option("--steps", type=int, help="Number of steps. The default is 2,600, or 1,300 with --tools.")
def main(folder: Path, tools: bool, steps: int | None) -> None:
    """Train the built-in model and save it in FOLDER."""
    train(folder, steps or (1300 if tools else 2600), tools=tools)


if __name__ == "__main__":
    main()
