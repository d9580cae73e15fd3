"""The attempts to have one answer: which upstream is asked next, and what comes of it when none is left."""

import logging
from collections.abc import Iterator
from collections.abc import Sequence as Seq

from shared.domain.errors import ContextLengthExceeded, EngineError, InvalidRequest
from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy, UpstreamError, UpstreamRefused
from workers.engines.upstream.upstream import Upstream
from workers.source import AnswerLost, Busy

log = logging.getLogger(__name__)
RETRY_S = 1.0


class Attempts:
    """Iterates over the upstreams that may be asked, each once; one that broke off in the middle may be asked again,
    since it has got somewhere."""

    def __init__(self, upstreams: Seq[Upstream], *, quota: str = "") -> None:
        """`quota` is that of the upstream from which the job was taken; it is asked first. What is asked beside it is
        spent, and what it was not asked for is given back."""
        self._left = sorted(upstreams, key=lambda each: each.quota.name != quota) if quota else list(upstreams)
        self._quota = quota
        self._taken_from = next((each for each in self._left if each.quota.name == quota), None)
        self._errors: list[tuple[Upstream, UpstreamError]] = []

    def __iter__(self) -> Iterator[Upstream]:
        while upstream := next((each for each in self._left if not each.open_for), None):
            self._left.remove(upstream)
            self._account(upstream)
            yield upstream
        self._give_back()

    def _account(self, upstream: Upstream) -> None:
        if upstream is self._taken_from:
            self._taken_from = None
            return
        if self._quota or self._errors:
            upstream.spend()
        self._give_back()

    def _give_back(self) -> None:
        """The request that the claim took was not sent there, and will not be."""
        if self._taken_from:
            self._taken_from.give_back()
            self._taken_from = None

    def failed(self, upstream: Upstream, error: UpstreamError, *, begun: bool) -> None:
        said = str(error).partition(":")[0]  # what follows is the upstream's, and may repeat a prompt
        log.warning("an upstream failed", extra={"upstream": upstream.target.shown, "error": said, "begun": begun})
        if begun:
            self._left.append(upstream)
        self._errors.append((upstream, error))

    def verdict(self, *, begun: bool) -> Exception:
        """The error of a request that no upstream has served. `begun` if the client has a part of the answer."""
        if self._errors and all(isinstance(error, UpstreamBroken) and error.final for _, error in self._errors):
            upstream, error = self._errors[-1]
            text = f"The upstream {upstream.target.shown} {error}"
            return AnswerLost(text) if begun else EngineError(text)
        return Busy("no upstream takes a request now", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        waits = [error.retry_after_s for _, error in self._errors if isinstance(error, UpstreamBusy)]
        waits += [each.open_for for each in self._left if each.open_for]
        return min(waits, default=RETRY_S)


def refusal(error: UpstreamRefused, *, begun: bool) -> Exception:
    """Return the job's error for an upstream's refusal. A continuation that is refused is not the fault of the
    request."""
    if begun:
        return AnswerLost(f"The upstream does not continue the answer: {error}")
    kind = ContextLengthExceeded if error.code == ContextLengthExceeded.code else InvalidRequest
    return kind(str(error), param=error.param)
