"""A run whose tokens come from an upstream. What they mean is decided as for any engine."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from shared.domain.errors import EngineError, InvalidRequest
from shared.domain.events import Completed, Event, Finished, Outcome, Usage
from shared.domain.job import Job
from shared.queue.protocols import Delivery
from workers.engines.upstream.token_protocols import Form, TokenProtocol, TokenRequest
from workers.parsers.tool_grammar import AUTO
from workers.protocols import Model
from workers.runs.generation import Generation
from workers.runs.source_run import SourceRun
from workers.scheduling.sequence import Sampled, Sequence
from workers.source import AnswerLost


class Ask(Protocol):
    """Asks for the tokens that continue a request, first of the upstream that has this quota."""

    def __call__(self, request: Callable[[], TokenRequest], *, quota: str) -> AsyncIterator[Sampled]: ...


class TokenRun(SourceRun):
    """A part is a choice. A grammar is enforced by the upstream, which begins it anew with each request: an answer that
    broke off under one is lost."""

    def __init__(
        self, delivery: Delivery, model: Model, ask: Ask, *, protocol: TokenProtocol, cost: Callable[[Usage], int]
    ) -> None:
        """Raises InvalidRequest as Generation does, and for what the server cannot do by this protocol."""
        self._generation = _PricedGeneration(delivery, model, cost)
        super().__init__(delivery, prompt_tokens=self._generation.prompt_tokens)
        self._ask = ask
        if delivery.job.request.get("prompt_logprobs") is not None:
            raise InvalidRequest("'logprobs' of an echoed prompt need an engine here.", param="logprobs")
        protocol.require_known(delivery.job.sampling)
        for sequence in self._generation.unfinished:
            if form := _form(delivery.job, sequence):
                protocol.hold(form)

    def opening(self) -> list[Event]:
        return self._told(self._generation.opening())

    @property
    def done(self) -> bool:
        return self._generation.done

    def completed(self) -> Completed:
        return self._generation.completed()

    @property
    def unfinished(self) -> list[int]:
        return [sequence.choice for sequence in self._generation.unfinished]

    def is_over(self, part: int) -> bool:
        return part not in self.unfinished

    def tokens(self, part: int) -> int:
        return self._generation.sequences[part].output_length

    def ask(self, part: int) -> AsyncIterator[Sampled]:
        """Raises AnswerLost within a grammar."""
        request = partial(self._request, self._generation.sequences[part])
        return self._ask(request, quota=self.delivery.quota)

    def advance(self, part: int, piece: Sampled) -> list[Event]:
        sequence = self._generation.sequences[part]
        sequence.ids.append(piece.token)
        return self._told(self._generation.advance(sequence, piece))

    def close(self, part: int) -> list[Event]:
        raise EngineError("The upstream ended an answer that has neither its end nor all its tokens.")

    def finish(self, outcome: Outcome) -> Finished:
        self.ended = True
        return self._generation.finish(outcome)

    def _request(self, sequence: Sequence) -> TokenRequest:
        job = self.delivery.job
        if sequence.constraint and sequence.output_length:
            raise AnswerLost("The answer broke off within a form that its upstream cannot continue.")
        return TokenRequest(
            ids=sequence.ids.tolist(),
            tokens_max=max(self._generation.tokens_left(sequence), 1),
            sampling=replace(
                sequence.sampling, min_tokens=max(sequence.sampling.min_tokens - sequence.output_length, 0)
            ),
            form=_form(job, sequence),
            salt=job.cache_salt,
            ignore_eos=job.sampling.ignore_eos,
        )

    def _told(self, events: list[Event]) -> list[Event]:
        self.ended = self.ended or self._generation.ended
        return events


class _PricedGeneration(Generation):
    def __init__(self, delivery: Delivery, model: Model, cost: Callable[[Usage], int]) -> None:
        self._cost = cost
        super().__init__(delivery, model)

    def completed(self) -> Completed:
        usage = super().completed().usage
        return Completed(usage=replace(usage, cost_micros=self._cost(usage)))


def _form(job: Job, sequence: Sequence) -> Form | None:
    """The form that the whole answer must have."""
    if (constraint := sequence.constraint) is None:
        return None
    forced = job.request.get("tools") and job.request.get("tool_choice", AUTO) != AUTO
    param = "tool_choice" if forced else job.sampling.grammar.param if job.sampling.grammar else "tools"
    return Form(constraint.lark, constraint.json_schema, param)
