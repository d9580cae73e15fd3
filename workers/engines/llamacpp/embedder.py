"""Embedders over llama.cpp: vectors of passages, pooled as the file says, or scores of pairs."""

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import llama_cpp
import numpy as np

from shared.domain.errors import EngineError
from workers.engines.llamacpp.library import Floats, LlamaContext, LlamaModel
from workers.engines.llamacpp.tokenizer import GgufTokenizer

TOGETHER_MAX = 64  # passages computed at once


class Passages:
    """Computes passages together; none sees another."""

    def __init__(self, context: LlamaContext, *, size: int) -> None:
        """`context` pools, and holds TOGETHER_MAX sequences. A passage has `size` numbers."""
        self._context = context
        self._size = size

    def pooled(self, passages: Seq[Seq[int]]) -> Floats:
        """Float32 [passages, size]. Raises EngineError for NaN or infinite numbers."""
        pooled = np.concatenate([self._compute(group) for group in self._groups(passages)])
        if not np.isfinite(pooled).all():
            raise EngineError("the model produced NaN or infinite vectors")
        return pooled

    def _compute(self, passages: Seq[Seq[int]]) -> Floats:
        counts = np.array([len(passage) for passage in passages])
        tokens = np.concatenate([np.array(passage, np.int32) for passage in passages])
        positions = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        ids = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return self._context.embed(tokens, positions, ids, size=self._size)

    def _groups(self, passages: Seq[Seq[int]]) -> Iterator[list[Seq[int]]]:
        """The passages in order, as many at a time as the context takes."""
        group: list[Seq[int]] = []
        for passage in passages:
            full = sum(map(len, group)) + len(passage) > self._context.batch_tokens_max
            if group and (full or len(group) == TOGETHER_MAX):
                yield group
                group = []
            group.append(passage)
        yield group


class LlamaEmbedder:
    pair = None

    def __init__(self, context: LlamaContext, *, size: int, tokens_max: int) -> None:
        self.size = size
        self.tokens_max = tokens_max
        self._passages = Passages(context, size=size)

    def embed(self, passages: Seq[Seq[int]]) -> list[list[float]]:
        pooled = self._passages.pooled(passages)
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        vectors: list[list[float]] = (pooled / np.maximum(lengths, np.finfo(np.float32).tiny)).tolist()
        return vectors


class LlamaRanker:
    """Its vectors have one number: how well the text answers the query, from 0 to 1."""

    size = 1

    def __init__(self, context: LlamaContext, model: LlamaModel, tokenizer: GgufTokenizer, *, tokens_max: int) -> None:
        self.tokens_max = tokens_max
        self._labels = int(llama_cpp.llama_model_n_cls_out(model.pointer))
        self._passages = Passages(context, size=self._labels)
        self._tokenizer = tokenizer
        self._template = model.template("rerank")

    def embed(self, passages: Seq[Seq[int]]) -> list[list[float]]:
        """A head of one label gives a logit; the first of several is a probability already."""
        first = self._passages.pooled(passages)[:, :1].astype(np.float64)
        scores: list[list[float]] = (1 / (1 + np.exp(-first)) if self._labels == 1 else first).tolist()
        return scores

    def pair(self, query: str, text: str, keep: int | None) -> list[int]:
        """Join query and text; the text is cut so that both have at most `keep` tokens."""
        before, after = self._around(query)
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        room = len(ids) if keep is None else max(keep - len(before) - len(after), 0)
        return [*before, *ids[:room], *after]

    def _around(self, query: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the text of a pair."""
        if self._template:
            before, _, after = self._template.partition("{document}")
            return self._marked(before, query), self._marked(after, query)
        return self._tokenizer.pair(query)

    def _marked(self, template: str, query: str) -> list[int]:
        """The tokens of a part of the template. What looks like a special token in the query is text."""
        parts = template.split("{query}")
        ids: list[int] = self._tokenizer.encode(parts[0], add_special_tokens=False)
        for part in parts[1:]:
            ids += self._tokenizer(query, add_special_tokens=False, split_special_tokens=True).input_ids
            ids += self._tokenizer.encode(part, add_special_tokens=False)
        return ids
