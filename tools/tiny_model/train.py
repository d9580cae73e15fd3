"""Train the built-in model from nothing: `python -m tools.tiny_model.train OUTPUT_FOLDER`.

A Llama of about 3.5 million parameters learns the answers of `dialogues` (never the questions). One run takes
about an hour on two CPU cores; the seed fixes data, initial weights and order.
"""

import math
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.tiny_model.dialogues import Message, dialogues
from tools.tiny_model.tokenizer import make_tokenizer

SEED = 20261121
VOCAB = 2048
WINDOW = 384
ROWS = 12
IGNORED = -100


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids and labels; only what the assistant says, and its end mark, is learned."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(message["content"] + "<|im_end|>", add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + body + tail
        labels += [IGNORED] * len(head)
        labels += body if message["role"] == "assistant" else [IGNORED] * len(body)
        labels += [IGNORED] * len(tail)
    return ids, labels


class Windows:
    """Batches of `ROWS` windows; every row starts with a fresh dialogue and is filled with more of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._source = dialogues(seed)

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


def learning_rate(step: int, steps: int, peak: float = 2.5e-3) -> float:
    warm = min(1.0, (step + 1) / 60)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(folder: Path, steps: int) -> None:
    torch.manual_seed(SEED)
    texts = [message["content"] for talk in islice(dialogues(SEED), 12_000) for message in talk]
    tokenizer = make_tokenizer([*texts, *["system", "user", "assistant"] * 50], VOCAB)
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.05)
    windows = Windows(tokenizer, SEED + 1)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    began, shown = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
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
    """A plain Hugging Face model folder, weights in half precision."""
    model.generation_config = GenerationConfig(
        pad_token_id=0, bos_token_id=1, eos_token_id=3, do_sample=True, temperature=0.6, top_p=0.9
    )
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2600)
