"""A run that turns a text into tokens, or tokens into text. It gives the model nothing to compute."""

from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Event, Tokenized, Usage
from shared.queue.protocols import Delivery
from workers.protocols import Model
from workers.runs.run import JobRun, require_known


class Tokenization(JobRun):
    """A run that is done when it is made."""

    def __init__(self, delivery: Delivery, model: Model) -> None:
        """Raises InvalidRequest for a request that the model's template or vocabulary refuses."""
        self._answer = _answer(delivery, model)
        super().__init__(delivery, prompt_tokens=0)

    @property
    def done(self) -> bool:
        return True

    def completed(self) -> Completed:
        """The outcome; it counts no tokens."""
        return Completed(usage=Usage(prompt_tokens=0, completion_tokens=0))

    def closing(self) -> list[Event]:
        logged = any(isinstance(event, Tokenized) for event in self.delivery.log)
        ids, texts = self._answer
        told = [] if logged else [Tokenized(seq=self.number(), token_ids=ids, texts=texts)]
        return [*told, *super().closing()]


def _answer(delivery: Delivery, model: Model) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids, and the text of each if the request asks for it; for given ids, no ids and their text."""
    request, tokenizer = delivery.job.request, model.tokenizer
    if (given := request.get("tokens")) is not None:
        return (), (tokenizer.decode(require_known(given, model.limits.vocabulary, param="tokens")),)
    if request.get("messages"):
        if not model.writes:
            raise InvalidRequest("'messages' must not be sent to an embedding model: send 'prompt'.", param="messages")
        ids = tokenizer.chat(request).ids
    else:
        ids = tokenizer.encode_text(request["prompt"], special=request["special"])
    texts = tuple(tokenizer.token_bytes(id_).decode(errors="replace") for id_ in ids) if request["texts"] else ()
    return tuple(ids), texts
