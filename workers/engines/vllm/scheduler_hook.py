"""Runs in vLLM's engine core: a sequence that was interrupted elsewhere comes back as one that was preempted there.

vLLM has requests whose known tokens are prompt and output: those that it preempted. A resumed request is made to look
like one, so that penalties, bounds, seeds and grammars go on where they stopped. vLLM calls the interface of its
schedulers not public, so `supports` looks for each part that is used here.
"""

import inspect
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from workers.engines.vllm.parent_death import end_with_parent
from workers.engines.vllm.sampling import resumed_of

PROMOTE = "_handle_blocked_waiting_request"
REQUEST_PARTS = ("num_prompt_tokens", "_output_token_ids", "_all_token_ids", "structured_output_request", "max_tokens")
# Beginning of the name of vLLM's class, as the class that vLLM imports by this name.
HOOKS = {False: f"{__name__}.ResumingScheduler", True: f"{__name__}.ResumingAsyncScheduler"}


def supports() -> bool:
    """True if this vLLM has what the hook uses: then a grammar goes on where it stopped."""
    made = inspect.getsource(Request.__init__)
    return (
        hasattr(Scheduler, PROMOTE)
        and hasattr(RequestStatus, "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR")
        and all(f"self.{part}" in made for part in REQUEST_PARTS)
    )


class _Resuming:
    """Mixed into vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        super().__init__(*args, **kwargs)

    def add_request(self, request: Request) -> None:
        resumed = resumed_of(request.sampling_params)
        if resumed and getattr(self, "use_v2_model_runner", False):
            _look_preempted(request, resumed)
        super().add_request(request)  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        before = request.status
        promoted: bool = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        resumed = resumed_of(request.sampling_params)
        if promoted and resumed and before is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            _accept_output(request, resumed)
        return promoted


class ResumingScheduler(_Resuming, Scheduler):
    pass


class ResumingAsyncScheduler(_Resuming, AsyncScheduler):
    pass


def _look_preempted(request: Request, resumed: int) -> None:
    """Turn the last `resumed` tokens of the prompt into output. The second model runner takes its state from this."""
    ids = request.prompt_token_ids
    assert ids is not None
    request.prompt_token_ids, output = ids[:-resumed], ids[-resumed:]
    request.num_prompt_tokens -= resumed
    request._output_token_ids.extend(output)


def _accept_output(request: Request, resumed: int) -> None:
    """Give a grammar that has just been compiled the output so far."""
    structured = request.structured_output_request
    assert structured is not None
    structured.grammar.accept_tokens(request.request_id, list(request._all_token_ids[-resumed:]))
