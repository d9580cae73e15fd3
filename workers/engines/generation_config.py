"""A model's generation config says how its answers end, and how they are sampled if nobody says otherwise."""

from typing import Any

from workers.protocols import Defaults


def eos_ids_of(config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer: the generation config may name several."""
    named = config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None)


def defaults_of(config: Any) -> Defaults:
    if config.do_sample is False:
        return Defaults()
    return Defaults(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        repetition_penalty=config.repetition_penalty or 1.0,
    )
