"""Encoders over transformers' models, packed where that computes the same."""

from typing import Any

from shared.settings import Settings
from workers.engines.encoder import Encoder
from workers.engines.native.device_limits import step_sizes
from workers.engines.native.embedding.cross_encoder import CrossEncoder
from workers.engines.native.embedding.embedder import EmbedderTrials
from workers.engines.native.embedding.pooling import Pooling
from workers.engines.native.kernels import attention
from workers.engines.native.weights.onednn_linear import can_pack, pack, unpack
from workers.scheduling.engine_limits import EngineLimits
from workers.text.chat_tokenizer import ChatTokenizer

CONTEXT_UNKNOWN = 512


def encoder_engine(model: Any, tokenizer: Any, pooling: Pooling, settings: Settings) -> Encoder:
    """An engine with an embedder: packed if it computes the vectors that the model's own code computes. `model` is
    without a head, in the attention that it was loaded with."""
    limits = _limits(model, tokenizer, pooling.tokens_max, settings)
    trials = EmbedderTrials(model, pooling, tokens_max=limits.context_length)
    own = model.config._attn_implementation
    attention.register()
    model.set_attn_implementation(attention.NAME)
    embedder = trials.packed()
    if embedder and can_pack(model):
        replaced = pack(model, rows=limits.batch_tokens_max)
        if trials.packed() is None:
            unpack(replaced)
    if embedder is None:
        model.set_attn_implementation(own)
    texts = ChatTokenizer(tokenizer, frozenset(), vocabulary=limits.vocabulary)
    return Encoder("embedding", texts, embedder or trials.own, limits=limits)


def ranking_engine(model: Any, tokenizer: Any, settings: Settings) -> Encoder:
    """An engine with a cross-encoder. `model` has a head of one label."""
    limits = _limits(model, tokenizer, None, settings)
    texts = ChatTokenizer(tokenizer, frozenset(), vocabulary=limits.vocabulary)
    return Encoder("embedding", texts, CrossEncoder(model, tokenizer, tokens_max=limits.context_length), limits=limits)


def _limits(model: Any, tokenizer: Any, pooling_max: int | None, settings: Settings) -> EngineLimits:
    sequences_max, batch_tokens_max = step_sizes(settings, model.device)
    return EngineLimits(
        sequences_max=sequences_max,
        batch_tokens_max=batch_tokens_max,
        context_length=_tokens_max(model, tokenizer, pooling_max, settings),
        vocabulary=model.config.get_text_config().vocab_size,
    )


def _tokens_max(model: Any, tokenizer: Any, pooling_max: int | None, settings: Settings) -> int:
    """The shortest length that the model, its tokenizer, its folder and the settings give."""
    said: list[int | None] = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        pooling_max,
        settings.context_length,
    ]
    return min([length for length in said if length] or [CONTEXT_UNKNOWN])
