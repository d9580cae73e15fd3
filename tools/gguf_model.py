"""A folder of a Llama model as a GGUF file: `python -m tools.gguf_model FOLDER FILE [--type q8_0]`, for tests and
measurements. llama.cpp's own `convert_hf_to_gguf.py` converts models of other kinds, and `llama-quantize` to other types.

The tokenizer must be one of pieces, as SentencePiece makes them: with byte tokens and `▁` for a space. Its merges become
scores, which lead to the same pieces.
"""

import json
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TYPES = {each.name.lower(): each for each in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)} | {
    "q8_0": gguf.GGMLQuantizationType.Q8_0
}
Weights = npt.NDArray[np.float32]


def convert(
    folder: Path, file: Path, type_: str = "f32", *, metadata: dict[str, str | float | int] | None = None
) -> None:
    """Write the model in `folder` as `file`. `metadata` is added, whatever its keys are."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    _write_shape(writer, config)
    _write_vocabulary(writer, folder, config)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    for name, weights in load_file(folder / "model.safetensors").items():
        _write_weights(writer, _name(name), _arranged(name, weights.astype(np.float32), config), TYPES[type_])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    known, merges = described["model"]["vocab"], described["model"]["merges"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)
    size = config["vocab_size"]
    tokens = [f"<unused{id_}>" for id_ in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, id_ in known.items():
        byte = len(token) == 6 and token.startswith("<0x")
        tokens[id_], types[id_] = token, gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL
    for added in described["added_tokens"]:
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], special
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
    writer.add_token_types([int(type_) for type_ in types])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _arranged(name: str, weights: Weights, config: dict[str, Any]) -> Weights:
    """Queries and keys in the order in which llama.cpp turns them: pairs beside each other, not half a head apart."""
    if "q_proj" in name:
        heads = config["num_attention_heads"]
    elif "k_proj" in name:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    else:
        return weights
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _write_weights(writer: Any, name: str, weights: Weights, type_: gguf.GGMLQuantizationType) -> None:
    """Vectors stay float32, as llama.cpp wants them."""
    type_ = type_ if weights.ndim > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(weights, type_), raw_dtype=type_)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--type", "type_", type=click.Choice(sorted(TYPES)), default="f32", show_default=True)
def main(folder: Path, file: Path, type_: str) -> None:
    """Write the model in FOLDER as FILE."""
    convert(folder, file, type_)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
