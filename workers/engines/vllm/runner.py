"""The runner of vLLM's engine. vLLM schedules and computes in processes of its own; the thread here hands it token ids
and takes the tokens of each of its steps. What a token means is the run's to say, as with an engine of ours."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from shared.domain.errors import EngineError
from shared.domain.events import Event, Failed, Outcome
from shared.observability.metrics import WorkerMetrics
from workers.engines.vllm.model import VllmModel
from workers.engines.vllm.requests import Requests
from workers.engines.vllm.resume import Resume
from workers.engines.vllm.stats import Stats, metrics_page
from workers.process.single_thread import SingleThread
from workers.protocols import EngineBroken
from workers.runners.embedding_steps import EmbeddingSteps
from workers.runners.engine_thread import EngineThread, StepClock, engine_failed, unreadable
from workers.runners.outbox import Outbox, Update
from workers.runners.step_metrics import StepMetrics
from workers.runs.embedding import Embedding
from workers.runs.generation import Generation
from workers.runs.run import JobRun
from workers.scheduling.sequence import Sampled, Sequence

log = logging.getLogger(__name__)
TRIES_MAX = 3  # of a sequence that vLLM gives up


class VllmRunner(EngineThread):
    """A `Runner`. A suspect is computed alone: the other sequences leave vLLM, which keeps their blocks in its prefix
    cache, and come back when the suspect has a token."""

    def __init__(
        self,
        name: str,
        llm: LLMEngine,
        model: VllmModel,
        thread: SingleThread,
        *,
        resume: Resume,
        loras: dict[str, LoRARequest],
        stats: Stats,
        outbox: Outbox,
        metrics: WorkerMetrics,
        more_places: Callable[[], None],
    ) -> None:
        """vLLM must have been started in `thread`. `loras` are the adapters by the names of their models."""
        self._metrics = StepMetrics(metrics, name, blocks=model.limits.blocks)
        clock = StepClock(self._metrics.durations)
        super().__init__(thread, outbox=outbox, clock=clock, places=model.limits.sequences_max)
        self.sleeps = bool(llm.vllm_config.model_config.enable_sleep_mode)
        self._llm = llm
        self._model = model
        self._resume = resume
        self._loras = loras
        self._stats = stats
        self._more_places = more_places
        self._owners: dict[Sequence, Generation] = {}
        self._suspects: dict[Sequence, None] = {}
        self._tries: dict[Sequence, int] = {}
        self._requests = Requests()
        self._asleep = False
        tokens_max = model.limits.batch_tokens_max
        self._embedding = EmbeddingSteps(model.embedder, tokens_max=tokens_max, clock=clock, metrics=self._metrics)

    def add(self, run: JobRun) -> None:
        super().add(run)
        self._interrupt()

    def drop(self, run: JobRun) -> None:
        super().drop(run)
        self._interrupt()

    def end(self, run: JobRun, outcome: Outcome) -> None:
        super().end(run, outcome)
        self._interrupt()

    def stop(self) -> Future[None]:
        ended = super().stop()
        self._interrupt()
        return ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """False as well once vLLM has seen its engine core die, of which it does not tell those who wait for a step."""
        resources = getattr(self._llm.engine_core, "resources", None)
        return super().alive(step_timeout_s=step_timeout_s) and not getattr(resources, "engine_dead", False)

    def metrics_page(self) -> bytes:
        return metrics_page()

    def sleep(self, level: int) -> Future[None]:
        if not self.sleeps:
            raise EngineError("vLLM sleeps only with the option enable_sleep_mode")
        return self._command(lambda: self._sleep(level))

    def wake(self) -> Future[None]:
        return self._command(self._wake)

    def _command(self, call: Callable[[], None]) -> Future[None]:
        """Do this in the thread. The future has the error that it raises, if any."""
        done: Future[None] = Future()

        def command() -> None:
            try:
                call()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._inbox.put(command)
        self._interrupt()
        return done

    def _interrupt(self) -> None:
        """Let the thread look into its inbox now if it waits for vLLM's next step: an empty step comes first."""
        steps = getattr(self._llm.engine_core, "outputs_queue", None)
        if steps is not None and self._requests:
            steps.put_nowait(EngineCoreOutputs())

    # -- in the thread

    def _sleep(self, level: int) -> None:
        if self._owners or self._embedding:
            raise EngineError("vLLM cannot sleep while it computes")
        self._llm.sleep(level)
        self._asleep, self._level = True, level

    def _wake(self) -> None:
        if not self._asleep:
            return
        self._llm.wake_up(["weights"])
        if self._level > 1:
            self._llm.engine_core.collective_rpc("reload_weights")
        self._llm.wake_up(["kv_cache"])
        self._asleep = False

    @property
    def _busy(self) -> bool:
        return bool(self._requests) or bool(self._embedding)

    def _count(self) -> None:
        if not self._requests:
            self._clock.record(progress=True)  # after an interrupted step, too, there is nothing that could be stuck
        self._metrics.running.set(len(self._owners))
        self._metrics.blocks.set(round(self._stats.cache_share * self._model.limits.blocks))
        at_vllm = self._stats.waiting if self._requests else 0
        waited, self.waiting = self.waiting, at_vllm + len(self._owners) - len(self._requests)
        places, self.places = self.places, 0 if self._asleep else self._model.limits.sequences_max
        self._metrics.waiting.set(self.waiting)
        if (waited or self.places > places) and not self.waiting:
            self._more_places()

    def _compute(self) -> None:
        if self._requests:
            self._deliver(self._step())
        if self._embedding:
            self._deliver(self._embedding.step())

    def _step(self) -> list[Update]:
        before, preempted, prefilled = self._stats.steps, self._stats.preempted, self._stats.prefilled
        try:
            with self._clock.step():
                outputs = self._llm.step()
        except EngineDeadError as error:
            raise EngineBroken("vLLM's engine core has died") from error
        updates: list[Update] = []
        tokens = 0
        for output in outputs:
            if (sequence := self._requests.sequence(output.request_id)) is not None:
                tokens += len(output.outputs[0].token_ids)
                updates += self._take(sequence, output)
        self._clock.record(progress=self._stats.steps > before)
        if outputs or self._stats.prefilled > prefilled:
            self._metrics.step(
                len(outputs),
                tokens=tokens,
                preempted=self._stats.preempted - preempted,
                prefilled=self._stats.prefilled - prefilled,
            )
        return updates

    def _take(self, sequence: Sequence, output: Any) -> list[Update]:
        run, new = self._owners[sequence], output.outputs[0]
        if sequence.cached_tokens is None:
            sequence.cached_tokens = output.num_cached_tokens or 0
            self._metrics.shared.inc(sequence.cached_tokens)
        if output.prompt_logprobs and sequence.sampling.prompt_logprobs is not None:
            self._take_prompt(sequence, output.prompt_logprobs, sequence.sampling.prompt_logprobs)
        events: list[Event] = []
        for at, token in enumerate(new.token_ids):
            written = run.next_seq
            sequence.ids.append(token)
            told = new.logprobs[at] if new.logprobs else None
            try:
                events += self._advance(run, sequence, _sampled(token, told, sequence.sampling.logprobs or 0))
            except Exception as error:
                log.exception("an answer cannot be read", extra={"job_id": run.delivery.job.id})
                run.take_back(written)
                return [Update(run, events), self._finish(run, unreadable(error))]
            if sequence not in run.unfinished:
                break
        if new.token_ids and sequence in self._suspects:
            del self._suspects[sequence]
            self._share()
        updates = [Update(run, events)] if events else []
        if sequence not in run.unfinished:
            self._forget(sequence, abort=new.finish_reason is None)
        elif new.finish_reason is not None:
            self._requests.remove(sequence)
            updates += self._go_on(sequence, new.finish_reason, progress=bool(new.token_ids))
        return updates

    def _take_prompt(self, sequence: Sequence, rows: Any, count: int) -> None:
        for at, told in enumerate(rows[: sequence.prompt_length]):
            if told:
                sequence.scored[at] = _sampled(sequence.ids[at], told, count)

    def _go_on(self, sequence: Sequence, reason: str, *, progress: bool) -> list[Update]:
        """vLLM ended a request whose answer is not at its end: compute it from where it is, or fail it in the end."""
        if self._resume.in_steps(sequence) and progress:
            return self._submit(sequence)
        tries = self._tries[sequence] = self._tries.get(sequence, 0) + 1
        self._metrics.faults.inc()
        if tries < TRIES_MAX:
            log.warning("vLLM gave a sequence up", extra={"reason": reason, "job_id": sequence.job_id})
            return self._submit(sequence)
        return [self._finish(self._owners[sequence], engine_failed(EngineError(f"vLLM ended the answer: {reason}")))]

    def _add(self, run: JobRun) -> None:
        match run:
            case Embedding():
                self._embedding.add(run)
            case Generation():
                self._add_sequences(run)
            case _:
                assert run.done, f"nobody computes a {type(run).__name__}"

    def _add_sequences(self, run: Generation) -> None:
        for sequence in run.unfinished:
            self._owners[sequence] = run
            if run.delivery.isolated:
                self._suspects[sequence] = None
        self._share()

    def _share(self) -> None:
        """Let vLLM have the first suspect alone, or all sequences."""
        wanted = dict.fromkeys([next(iter(self._suspects))] if self._suspects else self._owners)
        if others := [sequence for sequence in self._requests.sequences if sequence not in wanted]:
            self._llm.abort_request([self._requests.remove(sequence) for sequence in others])
        for sequence in wanted:
            if sequence in self._owners and sequence not in self._requests.sequences:
                self._deliver(self._submit(sequence))

    def _submit(self, sequence: Sequence) -> list[Update]:
        """Hand a sequence to vLLM; return the end of its job if vLLM refuses it."""
        run = self._owners[sequence]
        job = run.delivery.job
        try:
            self._llm.add_request(
                self._requests.add(sequence),
                tokens_input(sequence.ids.tolist(), cache_salt=job.cache_salt or None),
                self._resume.params(sequence, tokens_max=run.tokens_max(sequence)),
                lora_request=self._loras.get(sequence.adapter),
                priority=job.priority.rank,
            )
        except EngineDeadError as error:
            raise EngineBroken("vLLM's engine core has died") from error
        except (VLLMValidationError, ValueError) as error:
            self._requests.remove(sequence)
            failed = Failed(code="invalid_request", message=f"vLLM refuses the request: {error}")
            return [self._finish(run, failed)]
        except Exception as error:  # it fails the job that it is about, and no other
            log.exception("vLLM took no request", extra={"job_id": sequence.job_id})
            self._metrics.faults.inc()
            self._requests.remove(sequence)
            return [self._finish(run, engine_failed(error))]
        return []

    def _drop(self, run: JobRun) -> None:
        match run:
            case Embedding():
                self._embedding.drop(run)
            case Generation():
                suspected = bool(self._suspects)
                for sequence in run.sequences:
                    if sequence in self._owners:
                        self._forget(sequence)
                if suspected and not self._stopping:
                    self._share()

    def _forget(self, sequence: Sequence, *, abort: bool = True) -> None:
        del self._owners[sequence]
        self._tries.pop(sequence, None)
        self._suspects.pop(sequence, None)
        if sequence in self._requests.sequences:
            name = self._requests.remove(sequence)
            if abort:
                self._llm.abort_request([name])


def _sampled(token: int, told: Any, count: int) -> Sampled:
    """`told`: vLLM's logprob of the token and of the likeliest in its place, by id, with their ranks."""
    if not told:
        return Sampled(token)
    top = sorted((each.rank, id_, each.logprob) for id_, each in told.items() if each.rank and each.rank <= count)
    return Sampled(token, told[token].logprob, tuple((id_, logprob) for _, id_, logprob in top[:count]))
