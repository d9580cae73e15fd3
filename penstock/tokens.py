"""All that an engine of one's own needs which computes tokens: a function `load(spec, settings, thread) -> Loaded`,
served by `--engine package.module:load`.

Such a function loads the model in the thread that calls it, and mostly ends with
`return stepped(infos_of(spec, engine), engine, thread)`: then Penstock's scheduler makes the steps of an `Engine`, and
grammars, stop strings, logprobs, fairness and resumption are Penstock's. An engine that makes its own steps brings a
`Runner`. These names and what they mean stay; a field or a method may be added.
"""

from shared.domain.errors import InvalidRequest, SettingsError
from shared.domain.job import Grammar, ModelInfo
from shared.settings import Settings
from workers.loading.loaded import Loaded, infos_of, stepped
from workers.loading.model_spec import ModelSpec
from workers.loading.options import EngineOptions, validated
from workers.process.single_thread import SingleThread
from workers.protocols import Defaults, Embedder, Engine, EngineBroken, Model, OutOfMemory
from workers.runners.base import MakeRunner, Runner
from workers.runners.outbox import Outbox, Update
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Constraint, Sampled, Sequence
from workers.text.tokenizer import Chat, Tokenizer, plain_chat

__all__ = [
    "Batch",
    "Chat",
    "Constraint",
    "Defaults",
    "Embedder",
    "Engine",
    "EngineBroken",
    "EngineLimits",
    "EngineOptions",
    "Grammar",
    "InvalidRequest",
    "Loaded",
    "MakeRunner",
    "Model",
    "ModelInfo",
    "ModelSpec",
    "OutOfMemory",
    "Outbox",
    "Runner",
    "Sampled",
    "Sequence",
    "Settings",
    "SettingsError",
    "SingleThread",
    "Tokenizer",
    "Update",
    "infos_of",
    "plain_chat",
    "stepped",
    "validated",
]
