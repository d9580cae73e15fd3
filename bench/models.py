"""Random Llama models to measure with: `python -m bench.models FOLDER` writes FOLDER/bench-25m and FOLDER/bench-250m.

The models write nonsense of any length: their weights are random, and no end token is ever the likeliest. The tokenizer
and the chat template are the built-in model's, so that every server counts the same tokens.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.loading.model_spec import BUILTIN

SIZES: dict[str, dict[str, int]] = {
    "25m": {"hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 8},
    "250m": {"hidden_size": 1024, "num_hidden_layers": 14, "intermediate_size": 4096, "num_attention_heads": 16},
}
VOCABULARY = 4096  # more than the tokenizer's, for a realistic output layer; ids beyond are never chosen
PRETRAINED = "PreTrainedTokenizerFast"  # a class that transformers 4 and 5 both know


def make_model(size: str) -> Any:
    torch.manual_seed(1)
    known = len(json.loads((BUILTIN / "tokenizer.json").read_text())["model"]["vocab"])
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        **SIZES[size],
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[:10] = 0  # special tokens: a logit of 0 is never the best of thousands
        model.lm_head.weight[known:] = 0
    return model


def write(size: str, folder: Path) -> None:
    model = make_model(size)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(BUILTIN / name, folder / name)
    config = json.loads((BUILTIN / "tokenizer_config.json").read_text())
    template = (BUILTIN / "chat_template.jinja").read_text()
    config |= {"tokenizer_class": PRETRAINED, "chat_template": template}
    config.pop("extra_special_tokens")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    print(f"{folder}: {model.num_parameters() / 1e6:.1f} M parameters")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write both models."""
    for size in SIZES:
        write(size, folder / f"bench-{size}")


if __name__ == "__main__":
    main()
