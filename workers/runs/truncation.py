"""Drops the oldest messages of a chat that is longer than its model's context, if the request allows it."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from shared.domain.errors import ContextLengthExceeded
from shared.domain.job import Job
from workers.protocols import Model
from workers.text.tokenizer import Chat

Message = Mapping[str, Any]


def fitting_chat(job: Job, model: Model) -> Chat:
    """Encode the chat. With `drop_oldest`, it is the longest rest of the conversation that leaves room for the answer;
    if none does, the shortest. The same job is always cut in the same place. Raises what the tokenizer raises."""
    context, grammar = model.limits.context_length, job.sampling.grammar
    if not job.request.get("drop_oldest"):
        return model.tokenizer.chat(job.request, grammar, tokens_max=context)

    def encoded(messages: Seq[Message]) -> Chat:
        return model.tokenizer.chat({**job.request, "messages": messages}, grammar, tokens_max=context)

    rests = Rests(job.request["messages"])
    room = context - (job.sampling.max_tokens or 1)
    least, most = 0, len(rests) - 1
    while least < most:
        middle = (least + most) // 2
        try:
            fits = len(encoded(rests[middle]).ids) <= room
        except ContextLengthExceeded:
            fits = False
        least, most = (least, middle) if fits else (middle + 1, most)
    return encoded(rests[least])


class Rests:
    """What may be left of a conversation, by number, the longest first. Each begins with the system messages at its
    head, and then at a message of the user, so that no result stays without its call. The last request of the user is
    never dropped; behind it, the assistant's oldest messages are, each with the results of its calls."""

    def __init__(self, messages: Seq[Message]) -> None:
        end = len(messages)
        self._messages = messages
        self._head = next((at for at, message in enumerate(messages) if message["role"] != "system"), end)
        users = [at for at, message in enumerate(messages) if message["role"] == "user"]
        self._last_user = users[-1] if users else end
        steps = [at for at in range(self._last_user + 2, end) if messages[at]["role"] == "assistant"]
        self._starts = list(dict.fromkeys([self._head, *users, *steps]))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> list[Message]:
        start = self._starts[number]
        asked = [self._messages[self._last_user]] if start > self._last_user else []
        return [*self._messages[: self._head], *asked, *self._messages[start:]]
