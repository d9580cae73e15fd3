"""The built-in model's tokenizer: byte-pair encoding with byte fallback, digits one by one, ChatML roles."""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{%- set rest = messages %}"
    "{%- if tools %}"
    "{{- '<|im_start|>system\n' }}"
    "{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% set rest = messages[1:] %}{% endif %}"
    "{%- for tool in tools %}"
    "{{- tool.function.name + '(' }}"
    "{%- for key, schema in ((tool.function.get('parameters') or {}).get('properties') or {}).items() %}"
    "{{- key + ': ' + (schema.get('type', 'any') if schema is mapping else 'any') | string + ('' if loop.last else ', ') }}"
    "{%- endfor %}"
    "{{- ') ' + (tool.function.get('description') or '').split('\n')[0][:80] + '\n' }}"
    "{%- endfor %}"
    "{{- '<tool_call><|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in rest %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- ('\n' if message['content'] or not loop.first else '') + '<tool_call>\n' }}"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on `texts`. A character outside them still encodes, as its UTF-8 bytes."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - 256, show_progress=False, special_tokens=["\n"]
    )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = _words()
    learned.train_from_iterator(texts, trainer)
    state = json.loads(learned.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    vocab = {piece: index for index, piece in enumerate([*SPECIAL, *byte_tokens, *pieces])}
    merges = [tuple(pair) for pair in state["merges"]]

    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<pad>"))
    backend.pre_tokenizer = _words()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Split(Regex(r"[0-9]"), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"[-.,;:!?，。！？：“”=+×*]"), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
        ]
    )
