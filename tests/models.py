"""Makes small models with random weights, in ordinary folders, and the tokens that transformers generates with them."""

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from workers.engines.offline import compute_all
from workers.loading.model_spec import BUILTIN
from workers.protocols import Engine
from workers.scheduling.sequence import SamplingParams, Sequence

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
TOKENS = 24


def random_model(
    folder: Path, config: str, more: dict[str, Any], *, make: Callable[..., Any] = AutoModelForCausalLM.from_config
) -> Any:
    """Make a model of a transformers configuration, saved with the built-in model's tokenizer."""
    torch.manual_seed(5)
    model = make(getattr(transformers, config)(**(SMALL | more)), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "A_log" not in name:
            torch.nn.init.normal_(parameter, std=0.3)  # large weights make logits differ clearly
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((BUILTIN / name).read_bytes())
    return model


CALLING_TEMPLATE = """{% for tool in tools or [] %}{{ tool | tojson }} SIGN
{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){{ c.id }}
{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant
"""


def calling_model(folder: Path, sign: str, marks: Seq[str]) -> None:
    """Make a random model with `sign` in its chat template and with `marks` as tokens of their own."""
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)}, replace_extra_special_tokens=False)
    random_model(folder, "LlamaConfig", {"vocab_size": len(tokenizer), "max_position_embeddings": 2048})
    tokenizer.chat_template = CALLING_TEMPLATE.replace("SIGN", sign)
    tokenizer.save_pretrained(folder)


PAIR_WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "who": 4, "wrote": 5, "it": 6, "she": 7, "did": 8}


def pair_tokenizer() -> Any:
    """Make a tokenizer of a few words that encodes pairs as `[CLS] query [SEP] text [SEP]`."""
    fast = Tokenizer(WordLevel(PAIR_WORDS, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    names = ["input_ids", "token_type_ids"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", sep_token="[SEP]", model_input_names=names
    )


def ranking_model(folder: Path) -> Any:
    """Make a BERT with a head of one label and a tokenizer of pairs."""
    make = AutoModelForSequenceClassification.from_config
    model = random_model(folder, "BertConfig", {"max_position_embeddings": 128, "num_labels": 1}, make=make)
    pair_tokenizer().save_pretrained(folder)
    return model


def prompts(count: int = 6) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 300) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def sequence(prompt: list[int], sampling: SamplingParams = GREEDY, **more: Any) -> Sequence:
    return Sequence(job_id="j", choice=0, prompt=prompt, sampling=sampling, **more)


def generate(engine: Engine, sequences: list[Sequence], tokens: int = TOKENS) -> list[list[int]]:
    compute_all(engine, sequences, lambda each, _: len(each.output) == tokens)
    return [each.output for each in sequences]


def expected(reference: Any, prompt: list[int]) -> list[int]:
    """Generate greedily with transformers' own `generate`."""
    ids = torch.tensor([prompt])
    exactly = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "eos_token_id": None, "pad_token_id": 0}
    out = reference.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **exactly)
    new: list[int] = out[0, len(prompt) :].tolist()
    return new
