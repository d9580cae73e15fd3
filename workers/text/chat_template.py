"""A model's own chat template makes the prompt of messages; transformers runs it in its sandbox. Text that a client
wrote stays text, even if it looks like one of the model's special tokens."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from shared.domain.errors import InvalidRequest
from shared.domain.job import LENGTHS, text_of
from workers.parsers.template_parser import REASONING
from workers.process.time_limit import TimeLimitExceeded, time_limit

RENDER_S_MAX = 10.0
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode promises that no text holds them
MISTRAL_IDS = "[TOOL_CALLS]"  # templates that hold this require ids of nine letters or digits
ID_LENGTH = 9
SWITCHES = ("enable_thinking", "thinking")  # variables by which templates are told whether to reason


@dataclass(frozen=True, slots=True)
class Rendered:
    """`text` is the prompt as the model gets it. `broken` is the same with `wedge` inside everything that only looks
    like a special token."""

    text: str
    broken: str
    wedge: str


class ChatTemplate:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.text: str = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        self._specials = re.compile("|".join(map(re.escape, filter(None, tokenizer.all_special_tokens))) or "(?!)")
        self._reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}

    def render(self, request: Mapping[str, Any], *, reasons: bool) -> Rendered:
        """The prompt of a request. Raises InvalidRequest if the template refuses it or fails."""
        try:
            return self._rendered(request, reasons=reasons)
        except RecursionError as error:
            raise InvalidRequest("'messages' or 'tools' are nested too deeply.", param="messages") from error

    def _rendered(self, request: Mapping[str, Any], *, reasons: bool) -> Rendered:
        wedge = self._wedge(request)
        told = _told_length(request["messages"], request.get("verbosity"))
        messages = self._wedged([self._message(message) for message in told], wedge)
        if not self._tokenizer.chat_template:
            lines = [f"{message['role']}: {message['content'] or ''}" for message in messages]
            begun = [] if request.get("continues") or request.get("unbegun") else ["assistant:"]
            broken = "\n".join([*lines, *begun])
        else:
            broken = self._apply(request, messages, self._wedged(request.get("tools"), wedge), reasons)
        return Rendered(broken.replace(wedge, ""), broken, wedge)

    def encode(self, prompt: Rendered) -> list[int]:
        special = not self._tokenizer.chat_template
        if prompt.broken == prompt.text:
            return self._ids(prompt.text, add_special_tokens=special)
        looks = "|".join(
            re.escape(token[0] + prompt.wedge + token[1:]) for token in filter(None, self._tokenizer.all_special_tokens)
        )
        parts = re.split(f"({looks})", prompt.broken)  # every second part only looks like a special token
        texts = [text for text in dict.fromkeys(parts[::2]) if text]
        between = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        known = dict(zip(texts, between, strict=True))
        for part in set(parts[1::2]):
            text = part.replace(prompt.wedge, "")
            known[part] = self._ids(text, add_special_tokens=False, split_special_tokens=True)
        return [id_ for part in parts if part for id_ in known[part]]

    def _ids(self, text: str, **how: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, **how, verbose=False).input_ids if text else []
        return ids

    def _apply(self, request: Mapping[str, Any], messages: Any, tools: Any, reasons: bool) -> str:
        continues, told = bool(request.get("continues")), dict(request.get("template", {}))
        if taken := sorted(told.keys() & self._reserved):
            param = f"chat_template_kwargs.{taken[0]}"
            raise InvalidRequest(f"'{param}' cannot be set by a request.", param=param)
        told |= self._effort(request.get("effort"), reasons, lenient="thinking" in request)
        told |= _thinking(request.get("thinking"))
        told |= self._reasons(request.get("reasons"), reasons)
        try:
            with time_limit(RENDER_S_MAX):
                text: str = self._tokenizer.apply_chat_template(
                    messages,
                    tools=tools or None,
                    add_generation_prompt=not (continues or request.get("unbegun")),
                    continue_final_message=continues,
                    tokenize=False,
                    **told,
                )
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError, MemoryError, OverflowError) as error:
            message = f"The model's chat template refuses these messages: {error}"
            raise InvalidRequest(message, param="messages") from error
        except TimeLimitExceeded as error:
            message = f"The model's chat template takes more than {RENDER_S_MAX:g} s for these messages."
            raise InvalidRequest(message, param="messages") from error
        return text

    def _reasons(self, wanted: Seq[Any] | None, reasons: bool) -> dict[str, Any]:
        """The template's variables that say whether to reason. Raises InvalidRequest if the model has no choice."""
        if wanted is None:
            return {}
        param, on = wanted
        if variables := {name: on for name in SWITCHES if re.search(rf"\b{name}\b", self.text)}:
            return variables
        if on and (reasons or "reasoning_effort" in self.text):
            return {}
        if on:
            raise InvalidRequest(f"'{param}' cannot be set: this model does not reason.", param=param)
        return self._effort("none", reasons, param)

    def _effort(
        self, effort: str | None, reasons: bool, param: str = "reasoning_effort", *, lenient: bool = False
    ) -> dict[str, Any]:
        """The template's variable for the reasoning effort. Unless `lenient`, raises InvalidRequest if the model has
        none."""
        if effort is None:
            return {}
        if "reasoning_effort" in self.text:
            return {"reasoning_effort": effort}
        if "enable_thinking" in self.text:
            return {"enable_thinking": effort != "none"}
        if lenient or (effort == "none" and not reasons):
            return {}
        about = "always reasons as much as it likes" if reasons else "does not reason"
        raise InvalidRequest(f"'{param}' cannot be set: this model {about}.", param=param)

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message as templates expect it: arguments as objects, and reasoning under each of its names."""
        made = dict(message)
        if reasoning := next((said for name in REASONING if (said := message.get(name))), None):
            made |= dict.fromkeys(REASONING, reasoning)
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [
                {**call, "id": self._id(call["id"]), "function": _function(call["function"])} for call in calls
            ]
        if call_id := message.get("tool_call_id"):
            made["tool_call_id"] = self._id(call_id)
        return made

    def _id(self, call_id: str) -> str:
        if MISTRAL_IDS not in self.text or len(call_id) == ID_LENGTH:
            return call_id
        return hashlib.blake2b(call_id.encode()).hexdigest()[:ID_LENGTH]

    def _wedge(self, request: Mapping[str, Any]) -> str:
        """A character that the request does not hold."""
        written = json.dumps(request, ensure_ascii=False)
        found = next((character for character in NONCHARACTERS if character not in written), None)
        if found is None:
            raise InvalidRequest("'messages' holds every noncharacter of Unicode.", param="messages")
        return found

    def _wedged(self, value: Any, wedge: str) -> Any:
        """The value with a wedge in everything that looks like a special token."""
        match value:
            case str():
                return self._specials.sub(lambda found: found[0][0] + wedge + found[0][1:], value)
            case dict():
                return {key: self._wedged(each, wedge) for key, each in value.items()}
            case list():
                return [self._wedged(each, wedge) for each in value]
        return value


def _thinking(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables by which templates are told whether to reason: Qwen's and DeepSeek's."""
    if asked is None:
        return {}
    thinks = asked.get("type") in ("enabled", "adaptive")
    return dict.fromkeys(SWITCHES, thinks)


def _told_length(messages: Seq[Mapping[str, Any]], verbosity: str | None) -> Seq[Mapping[str, Any]]:
    """The messages, whose system message says how long the answer shall be."""
    if verbosity not in LENGTHS:
        return messages
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": LENGTHS[verbosity]}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{text_of(first)}\n\n{LENGTHS[verbosity]}"}, *rest]


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = function["arguments"]
    return {**function, "arguments": arguments}
