"""A model that vLLM computes, as runs know it."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from vllm import PoolingParams
from vllm.inputs.engine import tokens_input
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from workers.protocols import Defaults, Embedder, EngineBroken
from workers.scheduling.engine_limits import EngineLimits
from workers.text.tokenizer import Tokenizer


@dataclass(kw_only=True)
class VllmModel:
    """A `Model`."""

    writes: bool
    limits: EngineLimits
    defaults: Defaults
    tokenizer: Tokenizer
    adapters: frozenset[str]
    embedder: Embedder | None
    dtype: str
    kind: str = "vllm"


class VllmEmbedder:
    """An `Embedder`: vectors of vLLM's pooler, or scores of its classification head."""

    def __init__(self, llm: LLMEngine, tokenizer: Any, task: Literal["embed", "classify"]) -> None:
        config = llm.vllm_config.model_config
        self.tokens_max: int = config.max_model_len
        self.size: int = config.embedding_size if task == "embed" else 1
        self._llm = llm
        self._tokenizer = tokenizer
        self._task: Literal["embed", "classify"] = task
        self._typed = task == "classify" and getattr(config.hf_text_config, "type_vocab_size", 1) > 1
        self._numbers = count()

    @property
    def pair(self) -> Callable[[str, str, int | None], list[int]] | None:
        return self._pair if self._task == "classify" else None

    def _pair(self, query: str, text: str, keep: int | None) -> list[int]:
        cut = {"truncation": "only_second", "max_length": keep} if keep else {}
        ids: list[int] = self._tokenizer(query, text, **cut, verbose=False).input_ids
        return ids

    def embed(self, passages: Seq[Seq[int]]) -> Seq[Seq[float]]:
        names = [f"passage-{next(self._numbers)}" for _ in passages]
        found: dict[str, list[float]] = {}
        try:
            for name, passage in zip(names, passages, strict=True):
                self._llm.add_request(name, tokens_input(list(passage)), self._params(passage))
            while len(found) < len(names):
                for output in self._llm.step():
                    found[output.request_id] = self._vector(output)
        except EngineDeadError as error:
            raise EngineBroken("vLLM's engine core has died") from error
        except Exception:
            self._llm.abort_request([name for name in names if name not in found])
            raise
        return [found[name] for name in names]

    def _params(self, passage: Seq[int]) -> PoolingParams:
        if not self._typed:
            return PoolingParams(task=self._task, use_activation=True)
        text_begins = list(passage).index(self._tokenizer.sep_token_id) + 1
        types = {"compressed_token_type_ids": text_begins}
        return PoolingParams(task=self._task, use_activation=True, extra_kwargs=types)

    def _vector(self, output: Any) -> list[float]:
        data = output.outputs.data.float().flatten()
        vector: list[float] = (data / data.norm() if self._task == "embed" else data[-1:]).tolist()
        return vector
