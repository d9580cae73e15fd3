"""All that a class of one's own needs to serve a model: docs/engines.md shows how.

These names and what they mean stay; a field or a method may be added.
"""

from shared.domain.errors import ContextLengthExceeded, InvalidRequest
from shared.domain.events import CallPart, FinishReason, Likelihood, Logprobs, Usage
from shared.domain.job import Grammar, GrammarKind, Sampling
from workers.protocols import EngineBroken
from workers.source import (
    ABILITIES,
    AnswerLost,
    Busy,
    ChatRequest,
    ChatSource,
    CompletionRequest,
    Options,
    Piece,
    Pieces,
    Reasoning,
    Resume,
    Said,
    Text,
    TextRequest,
)

__all__ = [
    "ABILITIES",
    "AnswerLost",
    "Busy",
    "CallPart",
    "ChatRequest",
    "ChatSource",
    "CompletionRequest",
    "ContextLengthExceeded",
    "EngineBroken",
    "FinishReason",
    "Grammar",
    "GrammarKind",
    "InvalidRequest",
    "Likelihood",
    "Logprobs",
    "Options",
    "Piece",
    "Pieces",
    "Reasoning",
    "Resume",
    "Said",
    "Sampling",
    "Text",
    "TextRequest",
    "Usage",
]
